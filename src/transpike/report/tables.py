"""Evaluation -> Table: one row per step."""

from __future__ import annotations

from math import isfinite

from .._evaluate import Evaluation
from ..measure import Agreement
from ..table import Table
from .values import percent, percent_interval


def accuracy_table(evaluation: Evaluation) -> Table:
    """Accuracy, drop and agreement after each step, with what the step has cost so far.

    The interval (95 %, Wilson) is that of the column before it: of the accuracy, or of the agreement when nothing is
    labelled. Drop is the source's accuracy minus ours, in percentage points. Spikes per neuron and the energy ratio
    (the paper's account) are cumulative.
    """
    score = evaluation.score
    spikes = evaluation.tally.spikes_per_neuron().cumsum()
    judged = [_judged(score, step) for step in range(score.steps)]
    rows = tuple(
        (str(step + 1), *judged[step], f"{spikes[step]:.2f}", _ratio(float(evaluation.energy.ratio[step])))
        for step in range(score.steps)
    )
    title, judgement = "Agreement by step", ("agreement %", "95 % interval")
    if score.labelled:
        title, judgement = "Accuracy by step", ("accuracy %", "95 % interval", "drop (points)", "agreement %")
    return Table(title, ("t", *judgement, "spikes/neuron", "energy ratio"), rows, _notes(score))


def _judged(score: Agreement, step: int) -> tuple[str, ...]:
    agreement = score.agreement[step]
    if score.accuracy is None or score.source_accuracy is None:
        return percent(agreement), percent_interval(agreement, score.samples)
    accuracy = score.accuracy[step]
    drop = round(100 * (score.source_accuracy - accuracy), 2) + 0.0  # + 0.0 turns -0.0 into 0.0
    return percent(accuracy), percent_interval(accuracy, score.labelled), f"{drop:.2f}", percent(agreement)


def _notes(score: Agreement) -> tuple[str, ...]:
    cumulative = "spikes per neuron and energy ratio (the paper's account) are cumulative"
    if score.source_accuracy is None:
        return (f"{score.samples:,} samples without labels; {cumulative}",)
    bounds = percent_interval(score.source_accuracy, score.labelled)
    source = f"source model: {percent(score.source_accuracy)} % ({bounds}) on {score.labelled:,} samples"
    if score.labelled != score.samples:
        source += f"; agreement on {score.samples:,}, labelled or not"
    return source, cumulative


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}" if isfinite(ratio) else "-"
