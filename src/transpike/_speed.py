"""Early exit and precision, on samples as the command line names them."""

from __future__ import annotations

from ._early_exit import CHANGES, ExitBook, require_scores, stop_early
from ._model import SpikingModel
from ._simulate import PrecisionCheck, check_precision
from .pipeline import Failure, Part, Progress, inputs_of


def exit_book(
    model: SpikingModel,
    few: Part,
    *,
    steps: int,
    max_change: float,
    batch_size: int = 16,
    mode: str = "auto",
    on_failure: Failure | None = None,
    progress: Progress | None = None,
) -> ExitBook:
    """Thresholds of early exit from the samples of `few`; its `update` watches `evaluate_on`."""
    require_scores(model)
    batches = inputs_of(few, batch_size, on_failure, model.captured.batch_dim)
    changes = sorted({*CHANGES, max_change})
    return ExitBook(model, batches, steps=steps, max_changes=changes, mode=mode, progress=progress)


def precision_on(
    model: SpikingModel, part: Part, *, steps: int, batch_size: int = 16, mode: str = "auto"
) -> PrecisionCheck:
    """What the model's precision changes on the first batch of `part`."""
    first = next(inputs_of(part, batch_size, lambda item, error: None, model.captured.batch_dim))
    return check_precision(model, first, steps=steps, mode=mode, precision=model.precision)


def stop_on(model: SpikingModel, part: Part, *, steps: int, threshold: float, batch_size: int = 16) -> list[int]:
    """The steps that the readable samples of `part` take when each stops for real, in order."""
    took: list[int] = []
    for inputs in inputs_of(part, batch_size, lambda item, error: None, model.captured.batch_dim):
        took += stop_early(model, inputs, steps=steps, threshold=threshold, count=False).steps.tolist()
    return took
