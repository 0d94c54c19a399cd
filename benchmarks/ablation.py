"""What each ingredient of a conversion adds: the recipes to compare, and tables of what was measured.

    LIST=$(python benchmarks/ablation.py recipes order)
    transpike compare MODEL --data DATA --recipes $LIST --steps 1 --json order.json
    python benchmarks/ablation.py keep order.json alone.json balanced.json > ablation.json
    python benchmarks/ablation.py table ablation.json

`order` adds one ingredient after the other to `cascade`, `alone` each by itself, `balanced` is the road to the default;
`ecmt` adds each by itself to ECMT, calibrated for and read after 4 steps (`--steps 1,2,4`); `codes` are the neurons in
4 steps, before anything is added. `keep` is what the tables need of the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MSE = "cascade:levels=10:rule=mse"
FINE = f"{MSE}:granularity=channel"
E4 = "ecmt:steps=4"
TOGETHER = f"{E4}:levels=10:rule=mse:cutoff=0.5:granularity=channel:sequential=true:correction=bias"

# What is added, and the recipe that has it.
GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "codes": (
        ("ECMT as its code has it", "ecmt-code"),
        ("ECMT as its paper has it", "ecmt"),
        ("corrections instead of rates", "differential"),
    ),
    "order": (
        ("several firings a step", "cascade"),
        ("10 levels", "cascade:levels=10"),
        ("thresholds of least squared error", MSE),
        ("or at the fixed point instead", "cascade:levels=10:rule=fixed-point"),
        ("least squared error by channel and head", FINE),
        ("site after site", f"{FINE}:sequential=true"),
        ("bias correction", f"{FINE}:sequential=true:correction=bias"),
        ("cutoff 3/4", f"{FINE}:sequential=true:correction=bias:cutoff=0.75"),
    ),
    "balanced": (
        ("all sites balanced, one threshold each", "balanced:granularity=tensor"),
        ("by head", "balanced:granularity=head"),
        ("by channel and head", "balanced:granularity=channel"),
        ("by channel, head and position", "balanced"),
        ("bias correction", "balanced:correction=bias"),
        ("cutoff 1/2", "balanced:cutoff=0.5"),
    ),
    "alone": (
        ("nothing", "cascade"),
        ("10 levels", "cascade:levels=10"),
        ("99.9 % instead of the maximum", "cascade:percentile=0.999"),
        ("thresholds of least squared error", "cascade:rule=mse"),
        ("fixed-point thresholds", "cascade:rule=fixed-point"),
        ("by head", "cascade:granularity=head"),
        ("by channel and head", "cascade:granularity=channel"),
        ("site after site", "cascade:sequential=true"),
        ("bias correction", "cascade:correction=bias"),
        ("distribution correction", "cascade:correction=distribution"),
        ("cutoff 3/4", "cascade:cutoff=0.75"),
    ),
    "ecmt": (
        ("nothing", E4),
        ("10 levels", f"{E4}:levels=10"),
        ("99.9 % instead of the maximum", f"{E4}:percentile=0.999"),
        ("thresholds of least squared error", f"{E4}:rule=mse"),
        ("fixed-point thresholds", f"{E4}:rule=fixed-point"),
        ("by channel and head", f"{E4}:granularity=channel"),
        ("one range for both signs", f"{E4}:symmetric=true"),
        ("cutoff 1/2", f"{E4}:cutoff=0.5"),
        ("site after site", f"{E4}:sequential=true"),
        ("bias correction", f"{E4}:correction=bias"),
        ("all of these but fixed point and 99.9 %", TOGETHER),
    ),
}
HEAD = ("added", "recipe", "T", "accuracy %", "agreement % (95 %)", "spikes/neuron", "paper")


def row(what: str, outcome: dict[str, Any], steps: int) -> tuple[str, ...]:
    if outcome["error"]:
        return (what, f"`{outcome['label']}`", "", outcome["error"], "", "", "")
    point = next(point for point in outcome["points"] if point["steps"] == steps)
    low, high = (100 * bound for bound in point["agreement_interval"])
    return (
        what,
        f"`{outcome['label']}`",
        str(steps),
        f"{100 * point['accuracy']:.2f}",
        f"{100 * point['agreement']:.2f} ({low:.1f} - {high:.1f})",
        f"{point['spikes_per_neuron']:.2f}",
        f"{point['energy']['paper']:.3f}",
    )


def table(group: str, outcomes: dict[str, dict[str, Any]]) -> str:
    """Markdown rows of a group's recipes that were measured, after the steps it is read at; empty where none was."""
    steps = 4 if group in ("codes", "ecmt") else 1
    rows = [row(what, outcomes[recipe], steps) for what, recipe in GROUPS[group] if recipe in outcomes]
    lines = [f"| {' | '.join(line)} |" for line in (HEAD, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]]) if rows else ""


def kept(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """What the tables need of several comparisons, which have to be of the same samples."""
    samples = {(document["data"]["fingerprint"], document["samples"]) for document in documents}
    if len(samples) != 1:
        raise SystemExit("these comparisons are not of the same samples")
    names = {recipe for group in GROUPS.values() for _, recipe in group}
    outcomes = {outcome["label"]: outcome for document in documents for outcome in document["recipes"]}
    found = [outcome for label, outcome in outcomes.items() if label in names]
    return {
        "samples": documents[0]["samples"],
        "source": documents[0]["source"]["accuracy"],
        "versions": documents[0]["versions"],
        "recipes": [{key: outcome[key] for key in ("label", "error", "points")} for outcome in found],
    }


def tables(result: dict[str, Any]) -> str:
    outcomes = {outcome["label"]: outcome for outcome in result["recipes"]}
    return "\n\n".join(filter(None, (table(group, outcomes) for group in GROUPS)))


def main(verb: str, *names: str) -> None:
    if verb == "recipes":
        print(",".join(dict.fromkeys(recipe for name in names for _, recipe in GROUPS[name])))
        return
    documents = [json.loads(Path(name).read_text("utf-8")) for name in names]
    print(json.dumps(kept(documents), indent=1) if verb == "keep" else "\n\n".join(map(tables, documents)))


if __name__ == "__main__":
    main(*sys.argv[1:])
