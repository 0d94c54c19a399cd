"""RecipeComparison -> tables, a JSON document and files in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from .._compare import Outcome, RecipeComparison
from ..files import write_json
from ..measure import interval
from ..table import Table, shorten
from .comparison_picture import comparison_picture
from .machine import versions
from .values import json_value, percent, percent_interval

FORMAT = "transpike-comparison"
FORMAT_VERSION = 1
ACCOUNTS = {"paper": "paper's", "compute": "compute-complete", "memory": "with memory"}
WIDTH = 48


def comparison_tables(comparison: RecipeComparison) -> tuple[Table, ...]:
    """The numbers, a row per recipe and number of steps; and, where some do not fit, a row for each that says why."""
    failed = [(outcome.label, outcome.error) for outcome in comparison.outcomes if outcome.evaluation is None]
    main = _main_table(comparison)
    return (main, Table("Recipes that do not fit", ("recipe", "why"), tuple(failed))) if failed else (main,)


def _main_table(comparison: RecipeComparison) -> Table:
    """Accuracy and agreement, each with its 95 % interval (Wilson), and what they cost, cumulative up to step T."""
    labelled = comparison.score.source_accuracy is not None
    judged = ("accuracy %", "95 %") if labelled else ()
    columns = ("recipe", "T", *judged, "agreement %", "95 %", "spikes/neuron", "spikes/synapse", *ACCOUNTS)
    rows: list[tuple[str, ...]] = []
    for outcome in comparison.outcomes:
        name = shorten(outcome.label, WIDTH)
        if outcome.evaluation is None:
            rows.append((name, *["-"] * (len(columns) - 1)))
        else:
            rows.extend((name, *_row(outcome, t)) for t in comparison.steps)
    title = "Recipes on the same samples" + ("" if labelled else ", without labels")
    return Table(title, columns, tuple(rows), _notes(comparison))


def _row(outcome: Outcome, t: int) -> tuple[str, ...]:
    found = point(outcome, t)
    score = outcome.evaluation.score  # type: ignore[union-attr]
    accuracy = found["accuracy"]
    judged = () if accuracy is None else (percent(accuracy), percent_interval(accuracy, score.labelled))
    agreement = (percent(found["agreement"]), percent_interval(found["agreement"], score.samples))
    spikes = (f"{found['spikes_per_neuron']:.2f}", f"{found['spikes_per_synapse']:.2f}")
    bound = {name: "<=" if found["at_most"] and name != "paper" else "" for name in ACCOUNTS}
    ratios = (f"{bound[name]}{x:.3f}" if isfinite(x) else "-" for name, x in found["energy"].items())
    return str(t), *judged, *agreement, *spikes, *ratios


def point(outcome: Outcome, t: int) -> dict[str, Any]:
    """What one recipe gives with t steps; energy as ratio to the source in FP32, by account: all but the paper's at
    most so much where `at_most`."""
    assert outcome.evaluation is not None and outcome.sheet is not None
    score, sheet = outcome.evaluation.score, outcome.sheet
    accuracy = None if score.accuracy is None else score.accuracy[t - 1]
    return {
        "steps": t,
        "accuracy": accuracy,
        "accuracy_interval": None if accuracy is None else interval(accuracy, score.labelled),
        "agreement": score.agreement[t - 1],
        "agreement_interval": interval(score.agreement[t - 1], score.samples),
        "spikes_per_neuron": float(sheet.spikes_per_neuron[t - 1]),
        "spikes_per_synapse": float(sheet.paper.spikes_per_synapse[t - 1]),
        "energy": {name: float(sheet.comparison("FP32", account).ratio[t - 1]) for name, account in ACCOUNTS.items()},
        "at_most": sheet.ledger.at_most,
    }


def _notes(comparison: RecipeComparison) -> tuple[str, ...]:
    score, sheets = comparison.score, [outcome.sheet for outcome in comparison.fitting]
    source = f"{score.samples:,} samples"
    if score.source_accuracy is not None:
        bounds = percent_interval(score.source_accuracy, score.labelled)
        source = f"source model: {percent(score.source_accuracy)} % ({bounds}) on {score.labelled:,} samples"
    energy = (
        "energy per sample as ratio to the source in FP32, cumulative as the spikes: paper counts accumulates of the "
        "layers that spike; compute counts every operator; memory also counts what is moved"
    )
    uncounted = max((len(sheet.uncounted) for sheet in sheets if sheet is not None), default=0)
    missing = f"at least: {uncounted} operator(s) of unknown cost are not in compute and memory"
    bound = "<=: every basis of an approximated operator is taken to spike at every decay of its window"
    bounded = any(sheet.ledger.at_most for sheet in sheets if sheet is not None)
    return (source, energy, *((missing,) if uncounted else ()), *((bound,) if bounded else ()))


def comparison_document(
    comparison: RecipeComparison,
    *,
    command: list[str] | None = None,
    source: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    calibration_data: Mapping[str, Any] | None = None,
    seed: int | None = None,
    failed: Sequence[Mapping[str, Any]] = (),
    seconds: Mapping[str, float] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """The comparison and everything needed to repeat it, as JSON values; shares are in 0..1, `error` says why not."""
    score = comparison.score
    accuracy = score.source_accuracy
    bounds = None if accuracy is None else interval(accuracy, score.labelled)
    sheet = comparison.fitting[0].sheet
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": {**(source or {}), "accuracy": accuracy, "interval": bounds},
        "samples": score.samples,
        "labelled": score.labelled,
        "steps": comparison.steps,
        "prices": None if sheet is None else {"name": sheet.prices.name, "pj": dict(sheet.prices.pj)},
        "recipes": [_entry(outcome, comparison.steps) for outcome in comparison.outcomes],
        "calibration": {"data": calibration_data},
        "data": data,
        "failed": {"count": len(failed), "items": failed},
        "command": command,
        "versions": versions(torch.device(device)),
        "seed": seed,
        "seconds": seconds,
    }
    return json_value(content, "comparison")


def _entry(outcome: Outcome, steps: tuple[int, ...]) -> dict[str, Any]:
    fits = outcome.evaluation is not None
    return {
        "label": outcome.label,
        "recipe": outcome.recipe.to_json(),
        "error": outcome.error or None,
        "mode": outcome.evaluation.mode if outcome.evaluation is not None else None,
        "kernel": outcome.evaluation.kernel if outcome.evaluation is not None else None,
        "seconds": outcome.seconds if fits else None,
        "points": [point(outcome, t) for t in steps] if fits else [],
        "uncounted": list(outcome.sheet.uncounted) if outcome.sheet is not None else [],
    }


def write_comparison(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """Write comparison.json and comparison.png; returns what was written.

    Raises: MissingExtra when matplotlib is absent (comparison.json is then already there); ConfigError when the folder
    cannot be written.
    """
    written = write_json(folder / "comparison.json", document)
    return [written, comparison_picture(document, folder / "comparison.png")]
