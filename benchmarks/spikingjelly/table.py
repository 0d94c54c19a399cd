"""The two sides' JSON -> Markdown tables.

python table.py THEIRS.json OURS.json [MERGED.json]    merges both into one file on the way
python table.py MERGED.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from math import ceil, log2
from pathlib import Path
from typing import Any

import common

PAPER = "paper's"
PRICE = 0.9 / 4.6  # an accumulate in multiply-accumulates, 45 nm
COLUMNS = (
    "method", "T", "accuracy %", "agreement %", "events per neuron", "bits per event", "unit spikes per neuron",
    "paper's account", "its own count: compute", "its own count: with memory", "wall-clock",
)  # fmt: skip
SHOWN = {"vit": (1, 2, 4, 8), "resnet20": (1, 2, 4, 8, 16)}
TITLES = {"vit": "DeiT-Tiny", "resnet20": "ResNet-20"}


def bits(values: int) -> int:
    return ceil(log2(values))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def their_rows(name: str, model: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for run in model["runs"]:
        impulse = run["later_steps"] is not None or run["steps"] == 1
        for steps in (run["steps"],) if impulse else map(int, run["own_count"]):
            rows.append(their_row(name, model["source"], run, steps))
    return rows


def their_row(name: str, source: dict[str, Any], run: dict[str, Any], steps: int) -> tuple[str, ...]:
    """What did not run again because nothing happens there is taken from the last step that did."""
    last = min(steps, run["scored_steps"])
    accumulates = sum(run["accumulates"][:last])
    events, units = (sum(run[key][:last]) for key in ("events_per_neuron", "units_per_neuron"))
    counts, priced = run["own_count"], source["own_count"]

    def ratio(key: str) -> str:
        if key == "total_uj" and not counts[str(steps)]["memory_uj"]:
            return "counts no memory"
        return both([counts[t][key] / priced[key] for t in at(counts, steps)])

    largest = run["largest_count"]
    return (
        run["method"],
        str(steps),
        with_delay(run, "accuracy", steps, last),
        with_delay(run, "agreement", steps, last),
        f"{events:.2f}",
        "1" if largest == 1 else f"{bits(2 * largest + 1)}",
        f"{units:.2f}",
        f"{PRICE * accumulates / common.dense_behind_spikes(name):.3f}",
        ratio("compute_uj"),
        ratio("total_uj"),
        both([run["seconds"][t]["ratio"] for t in at(counts, steps)]),
    )


def with_delay(run: dict[str, Any], key: str, steps: int, last: int) -> str:
    """In brackets with SpikingJelly's delayed read-out."""
    plain, delayed = percent(run[key][last - 1]), run.get("delayed", {}).get(str(steps))
    return f"{plain} ({percent(delayed[key][0])})" if delayed else plain


def at(counts: dict[str, Any], steps: int) -> list[str]:
    """All steps, then step 1 alone where it was measured too."""
    return [str(steps), *(["1"] if "1" in counts and steps > 1 else [])]


def both(ratios: list[float]) -> str:
    return " / ".join(f"{ratio:.2f}" for ratio in ratios)


def our_rows(name: str, model: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for run in model["runs"]:
        for t in SHOWN[name]:
            account = {key: values[t - 1] for key, values in run["accounts"]["FP32"].items()}
            clock = run["seconds"].get(str(t))
            rows.append(
                (
                    run["method"],
                    str(t),
                    percent(run["accuracy"][t - 1]),
                    percent(run["agreement"][t - 1]),
                    f"{sum(run['events_per_neuron'][:t]):.2f}",
                    str(run["bits_per_event"]),
                    "",
                    f"{account[PAPER]:.3f}",
                    f"{account['compute-complete']:.2f}",
                    f"{account['with memory']:.2f} ({account['with memory, shared reads']:.2f})",
                    f"{clock['ratio']:.2f}" if clock else "",
                )
            )
    return rows


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in (columns, *rows))
    return "\n".join([head, f"|{'---|' * len(columns)}", *body])


def by_step(run: dict[str, Any], keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    shares = ("accuracy", "agreement")
    cells = [[percent(v) if key in shares else f"{v:.2f}" for v in run[key]] for key in keys]
    return [
        (f"{run['method']}, T={run['steps']}", key.replace("_", " "), *row)
        for key, row in zip(keys, cells, strict=True)
    ]


def document(merged: dict[str, Any]) -> str:
    parts = []
    for name, title in TITLES.items():
        theirs, ours = merged["theirs"]["models"][name], merged["ours"]["models"][name]
        source = theirs["source"]
        count = source["own_count"]
        parts.append(
            f"{title}: source {percent(source['accuracy'])} % of {source['samples']} samples, "
            f"{source['calibration']} others calibrate; SpikingJelly counts {count['mac'] / 1e6:,.1f} M MAC and "
            f"{count['ac'] / 1e6:,.2f} M AC of the source"
        )
        tools = [("SpikingJelly", row) for row in their_rows(name, theirs)]
        tools += [("transpike", row) for row in our_rows(name, ours)]
        parts.append(markdown(("tool", *COLUMNS), [(tool, *row) for tool, row in tools]))
    spread = next(run for run in merged["theirs"]["models"]["vit"]["runs"] if "x/T" in run["method"])
    keys = ("accuracy", "agreement", "events_per_neuron", "units_per_neuron")
    steps = tuple(f"t={t + 1}" for t in range(spread["steps"]))
    parts.append(markdown(("fed x/T", "", *steps), by_step(spread, keys)))
    return "\n\n".join(parts)


def write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def main(files: list[str]) -> None:
    read = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files[:2]]
    merged = read[0] if len(read) == 1 else {"benchmark": "spikingjelly", "theirs": read[0], "ours": read[1]}
    if len(files) == 3:
        write_whole(Path(files[2]), json.dumps(merged, indent=1) + "\n")
    print(document(merged))


if __name__ == "__main__":
    main(sys.argv[1:])
