"""A sample stops when its decision is stable: SpikingModel, batches -> EarlyExit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch

from . import ops
from ._arguments import require_count
from ._count import Counter, keep_samples
from ._evaluate import LabelledBatch, evaluate
from ._execute import Values, batch_axis, is_shared
from ._kernels import Kernels, choose_kernels
from ._memory import parts_that_fit
from ._model import SpikingModel
from ._rest import Rest, can_rest
from ._simulate import Run, in_precision, once, require_precision, simulate, step
from .errors import CalibrationError, ConfigError
from .measure import Tally, interval, margins, stopping_steps, stopping_threshold
from .measure.agreement import IGNORED
from .table import Table

CHANGES = (0.0, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True)
class Stopped:
    """One batch, each sample simulated until it stops: `outputs` [B, C] and `steps` [B] then; `spikes` until then."""

    outputs: torch.Tensor
    steps: torch.Tensor
    spikes: Tally


@torch.no_grad()
def stop_early(
    model: SpikingModel, inputs: Any, *, steps: int, threshold: float, count: bool = True, kernel: str | None = None
) -> Stopped:
    """Simulate step by step; a sample whose two largest class probabilities are more than `threshold` apart stops and
    leaves the batch, so that the steps it does not need take no time. The others stop after `steps` (those in which
    nobody would fire do not run). `kernel` as for `simulate`.

    Raises: ConfigError for a threshold outside 0..1, a `model.precision` that is none, outputs that are not one row of
    class scores per sample, and several samples of a model that does not keep them apart; DataError for inputs of
    another shape.
    """
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ConfigError(f"the threshold of early exit must be from 0 to 1, not {threshold!r}")
    require_count("steps", steps)
    require_precision(model.precision)
    require_scores(model)
    leaves = model.prepare(inputs)
    samples = model.samples_in(leaves)
    if model.unfoldable and samples > 1:
        raise ConfigError(
            f"samples cannot leave a batch of this model one by one ({model.unfoldable}); pass batches of one sample"
        )
    chosen = choose_kernels(model, kernel, model.precision, samples=samples, steps=steps, folded=False)
    parts = parts_that_fit(
        model, leaves, steps=steps, folded=False, count=count, budget=model.max_memory, precision=model.precision
    )
    stopped = [_stopped(model, part, steps, threshold, count, chosen) for part in parts]
    outputs, took = (torch.cat([getattr(each, name) for each in stopped]) for name in ("outputs", "steps"))
    if chosen.compiled and bool(outputs.isnan().any()):  # NaN is no margin, so such samples have run to the end
        simulate(model, inputs, steps=steps, mode="streaming", count=False, kernel="eager")  # says at which site
    outputs = outputs.float() if model.precision == "bfloat16" else outputs
    return Stopped(outputs, took, Tally.joined([each.spikes for each in stopped]))


def _stopped(
    model: SpikingModel, leaves: tuple[torch.Tensor, ...], steps: int, threshold: float, count: bool, chosen: Kernels
) -> Stopped:
    tally = Tally(steps, samples=model.samples_in(leaves))
    counter = Counter(model.program, tally, model.layers_by_node, 1, model.recipe.product_terms) if count else None
    state: dict[str, torch.Tensor] = {}
    crossing = once(model, leaves)
    rows, resting = torch.arange(tally.samples, device="cpu"), can_rest(model)
    outputs: torch.Tensor | None = None
    took = torch.full((tally.samples,), steps, device="cpu")
    for t in range(1, steps + 1):
        if counter is not None:
            counter.step = t - 1
        rest = Rest(resting and t < steps)
        with in_precision(model, model.precision):
            output = step(model, crossing, state, t, counter, chosen, rest)
        outputs = output.new_empty((tally.samples, output.shape[-1])) if outputs is None else outputs
        outputs[rows] = output  # of those that go on, until the next step
        ended = (margins(output) > threshold).cpu() if t < steps else rows >= 0
        took[rows[ended]] = t
        if ended.all():
            break
        if rest.holds and not ended.any():  # and never will
            if counter is not None:
                counter.rest()
            break
        if ended.any():
            places = (~ended).nonzero().flatten()
            crossing = _keep(crossing, len(rows), places)
            _keep_state(model, state, len(rows), places)
            rows = rows[places]
            if counter is not None:
                counter.keep(places)
    return Stopped(outputs, took, tally)  # type: ignore[arg-type]


def require_scores(model: SpikingModel) -> None:
    """Raises ConfigError unless the model gives one row of class scores per sample."""
    result = model.program.result
    value = result.meta["val"]
    if value.dim() != 2 or value.shape[-1] < 2 or batch_axis(result) or is_shared(result):
        shape = " x ".join(str(size) for size in value.shape[1:])
        raise ConfigError(f"early exit decides by class scores, but a sample of this model has outputs of {shape}")


def _keep(values: Values, samples: int, places: torch.Tensor) -> Values:
    """Values of the prefix for the samples at `places` of a batch of `samples`."""
    kept: Values = {}
    for node, value in values.items():
        if isinstance(value, torch.Tensor) and (axis := batch_axis(node)) is not None:
            kept[node] = keep_samples(value, axis, samples, places)
        elif isinstance(value, int) and node.meta.get("batch_scaled"):
            kept[node] = value // samples * len(places)
        else:
            kept[node] = value
    return kept


def _keep_state(model: SpikingModel, state: dict[str, torch.Tensor], samples: int, places: torch.Tensor) -> None:
    for node in model.program.body:
        if ops.is_site(node) and (axis := batch_axis(node)) is not None:
            state[str(node.args[1])] = keep_samples(state[str(node.args[1])], axis, samples, places)


@dataclass(frozen=True)
class ExitRow:
    """What one threshold gives. changed -- share of calibration samples that stop with another decision than after
    step T; agreement -- share of evaluated samples that stop with the same; spikes_per_neuron until they stop, None
    where spikes are not counted by sample."""

    max_change: float | None
    threshold: float | None
    changed: float
    mean_steps: float
    accuracy: float | None
    agreement: float
    spikes_per_neuron: float | None


@dataclass(frozen=True)
class EarlyExit:
    """Thresholds from calibration samples, and what they give on others; the last row runs all steps."""

    steps: int
    samples: int
    labelled: int
    calibration_samples: int
    rows: tuple[ExitRow, ...]

    def threshold(self, max_change: float) -> float:
        """Raises ConfigError for a share that is in no row."""
        for row in self.rows:
            if row.max_change == max_change and row.threshold is not None:
                return row.threshold
        raise ConfigError(f"no threshold was calibrated for max_change {max_change!r}")

    def table(self) -> Table:
        columns = ("max change %", "threshold", "mean steps", "accuracy %", "95 % interval", "same decision as at T %")
        notes = (
            f"stops at the first step whose two largest class probabilities are more than the threshold apart, at T = "
            f"{self.steps} otherwise",
            f"thresholds: the smallest that change at most that share of decisions of {self.calibration_samples:,} "
            f"calibration samples; evaluated on {self.samples:,} others",
        )
        rows = tuple(self._cells(row) for row in self.rows)
        return Table("Early exit", (*columns, "spikes/neuron"), rows, notes)

    def _cells(self, row: ExitRow) -> tuple[str, ...]:
        whole = row.max_change is None or row.threshold is None
        name = ("off", "-") if whole else (f"{100 * row.max_change:g}", f"{row.threshold:.6f}")  # type: ignore[operator]
        accuracy, bounds = "-", "-"
        if row.accuracy is not None:
            low, high = interval(row.accuracy, self.labelled)
            accuracy, bounds = f"{100 * row.accuracy:.2f}", f"{100 * low:.1f} - {100 * high:.1f}"
        spikes = "-" if row.spikes_per_neuron is None else f"{row.spikes_per_neuron:.2f}"
        return (*name, f"{row.mean_steps:.2f}", accuracy, bounds, f"{100 * row.agreement:.2f}", spikes)

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "samples": self.samples,
            "labelled": self.labelled,
            "calibration_samples": self.calibration_samples,
            "rows": [vars(row) for row in self.rows],
        }


def early_exit(
    model: SpikingModel,
    calibration: Iterable[Any],
    batches: Iterable[LabelledBatch],
    *,
    steps: int,
    max_changes: Sequence[float] = CHANGES,
    mode: str = "auto",
) -> EarlyExit:
    """The trade-off between steps and accuracy when samples stop as soon as their decision is stable.

    Arguments: calibration -- model inputs in batches, which set the thresholds and are not evaluated; batches -- as for
    `transpike.evaluate`; max_changes -- shares of calibration samples that may stop with another decision than after
    step T, one threshold for each. All rows come from one run of all steps; `stop_early` saves the time.
    Raises: ConfigError for a share outside 0..1 or outputs that are no class scores; CalibrationError for no sample.
    """
    book = ExitBook(model, calibration, steps=steps, max_changes=max_changes, mode=mode)
    evaluate(model, batches, steps=steps, mode=mode, watch=book.update)
    return book.result()


class ExitBook:
    """Thresholds from calibration samples; `update` with every evaluated run, then `result`."""

    def __init__(
        self,
        model: SpikingModel,
        calibration: Iterable[Any],
        *,
        steps: int,
        max_changes: Sequence[float] = CHANGES,
        mode: str = "auto",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        for share in max_changes:
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ConfigError(f"early exit may change a share of decisions from 0 to 1, not {share!r}")
        require_scores(model)
        calibration = [calibration] if isinstance(calibration, (torch.Tensor, Mapping)) else calibration
        outputs: list[torch.Tensor] = []
        for batch in calibration:
            outputs.append(simulate(model, batch, steps=steps, mode=mode, count=False).outputs)
            if progress is not None:
                progress(sum(part.shape[1] for part in outputs))
        if not outputs:
            raise CalibrationError("early exit got no calibration samples; pass at least one batch of model inputs")
        whole = torch.cat(outputs, 1)
        self.steps, self.calibration_samples = steps, whole.shape[1]
        self.rules = [(share, *stopping_threshold(whole, share)) for share in sorted(set(max_changes))]
        self.neurons = model.neurons_per_sample
        self.samples = self.labelled = 0
        self.sums = np.zeros((len(self.rules) + 1, 4))  # steps, right, same, spikes

    def update(self, run: Run, labels: torch.Tensor | None) -> None:
        answers = run.outputs.argmax(-1)
        columns = torch.arange(answers.shape[1], device="cpu")
        labels = torch.full_like(answers[0], IGNORED) if labels is None else labels
        spikes = run.spikes.by_sample
        self.samples += len(columns)
        self.labelled += int((labels != IGNORED).sum())
        for row, threshold in enumerate([*(rule[1] for rule in self.rules), 2.0]):
            took = stopping_steps(run.outputs, threshold).cpu()
            chosen = answers[took - 1, columns]
            total = np.nan if spikes is None else spikes.cumsum(0)[took.numpy() - 1, columns.numpy()].sum()
            right, same = ((chosen == other).sum().item() for other in (labels, answers[-1]))
            self.sums[row] += (took.sum().item(), right, same, total)

    def result(self) -> EarlyExit:
        rows = []
        for (share, threshold, changed), sums in zip([*self.rules, (None, None, 0.0)], self.sums, strict=True):
            mean, same, spikes = (float(sums[i]) / max(self.samples, 1) for i in (0, 2, 3))
            accuracy = float(sums[1]) / self.labelled if self.labelled else None
            fired = spikes / self.neurons if isfinite(spikes) else None
            rows.append(ExitRow(share, threshold, changed, mean, accuracy, same, fired))
        return EarlyExit(self.steps, self.samples, self.labelled, self.calibration_samples, tuple(rows))
