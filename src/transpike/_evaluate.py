"""SpikingModel, labelled batches -> Evaluation: accuracy, agreement and counts after every step, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ._model import SpikingModel
from .energy import PaperAccount, paper_account
from .errors import DataError
from .measure import Agreement, Tally
from .neurons import choose


class LabelledBatch(Protocol):
    @property
    def inputs(self) -> Any: ...
    @property
    def labels(self) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class Evaluation:
    """What a set of samples gave: `score` (accuracy and agreement by step), `tally` (spikes and operations), energy."""

    score: Agreement
    tally: Tally
    energy: PaperAccount
    mode: str
    kernel: str


def evaluate(
    model: SpikingModel,
    batches: Iterable[LabelledBatch],
    *,
    steps: int,
    mode: str = "auto",
    kernel: str = "auto",
    samples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run source and spiking model on every batch and count.

    Arguments: batches -- objects with `inputs` (model inputs) and `labels` ([B], [B, ...] with -100 where nothing is
    asked, or None). kernel -- as in `simulate`; "auto" compiles where `samples`, how many are to come, are worth it.
    Raises: DataError when there is no sample.
    """
    score, tally, used, ran = Agreement(steps), Tally(steps), mode, kernel
    if choose(kernel, samples * model.neurons_per_sample * steps, model.device) == "compiled":
        kernel = "compiled"
    for batch in batches:
        run = model.simulate(batch.inputs, steps, mode=mode, kernel=kernel)
        used, ran = run.mode, run.kernel
        labels = None if batch.labels is None else batch.labels.to(run.outputs.device)
        score.update(model.source(batch.inputs), run.outputs, labels)
        tally += run.spikes
        if progress is not None:
            progress(score.samples)
    if score.samples == 0:
        raise DataError("there is no sample to evaluate")
    return Evaluation(score, tally, paper_account(tally, model.plan), used, ran)
