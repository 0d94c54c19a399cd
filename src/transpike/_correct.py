"""SpikingModel, batches -> SpikingModel: what quantisation shifts on average, put right by channel, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.fx

from ._capture import Captured
from ._execute import Values, run_body, run_prefix
from ._model import SpikingModel
from .calibration import batch_size
from .errors import CalibrationError, ConfigError
from .neurons import Frame, Framed, fire_once, plain
from .recipes import CORRECTIONS
from .types import Site, SiteKind


def correct(
    model: SpikingModel,
    batches: Iterable[Any],
    how: str = "bias",
    *,
    steps: int | None = None,
    clipped: bool = False,
    max_samples: int | None = 512,
) -> SpikingModel:
    """The same network with constants by channel at its sites, from the source (teacher) and the network (student) side
    by side on unlabelled samples. With means over samples and positions, z what arrives at a site, a what leaves it:

        bias            shift = mean(z_teacher - a_student);   a = N(z) + shift
        distribution    psi = mean(z_teacher - z_student), then phi = mean(z_teacher - a_student);
                        a = (1 + phi / theta) N(z + psi)

    A site is corrected after the sites before it, within each batch; the means are those of all batches so far. Sites
    of weight layers only: a product has no bias to take up a shift. The network is read after `steps` (the recipe's).
    With `clipped` the teacher's activations end at the thresholds: the teacher of a network that was trained with the
    QCFS activation, whose ReLU network nobody trained.
    Source of distribution: DA-QCFS of Parallel Conversion, arXiv 2412.13610. Differences: the neuron reads the
    activation, so z is behind the ReLU; plain means in the place of running means at a rate of 0.01, which need
    hundreds of batches to arrive; the teacher is not quantised. Bias is the usual bias correction of quantisation.
    Returns: a network that shares all but its frames with `model`. Raises: ConfigError for another `how`, and for
    distribution where thresholds of a site differ; CalibrationError for no samples.
    """
    if how not in CORRECTIONS[1:]:
        raise ConfigError(f"a correction must be {' or '.join(CORRECTIONS[1:])}, not {how!r}")
    pairing = Pairing(model, how, steps or model.recipe.steps, clipped)
    if how == "distribution" and any(frame.scale is not None for frame in pairing.frames.values()):
        raise ConfigError("distribution needs one threshold per tensor; use the correction bias with this recipe")
    for batch in batches:
        pairing.see(model.prepare(batch))
        if max_samples is not None and pairing.samples >= max_samples:
            break
    if not pairing.samples:
        raise CalibrationError("the correction got no samples; pass at least one batch of model inputs")
    return model.changed(
        recipe=replace(model.recipe, correction=how), calibration=replace(model.calibration, frames=pairing.frames)
    )


def as_asked(model: SpikingModel, batches: Iterable[Any], max_samples: int | None) -> SpikingModel:
    """Corrected as the recipe asks."""
    how = model.recipe.correction
    return model if how == "none" else correct(model, batches, how, max_samples=max_samples)


def until(captured: Captured, batches: Iterable[Any], most: int | None) -> Iterable[Any]:
    """Batches until `most` samples are seen; the last may hold more."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch_size(captured, captured.flatten(batch))
        if most is not None and seen >= most:
            return


class Pairing:
    """Teacher and student on the same batches; `frames` by site, where its tensor is, are what they have shown so far.
    What a frame had of that before the first batch is forgotten."""

    def __init__(self, model: SpikingModel, how: str, steps: int, clipped: bool) -> None:
        self.model, self.how, self.steps, self.clipped = model, how, steps, clipped
        self.frames = {name: neuron.frame for name, neuron in model.neurons.items() if isinstance(neuron, Framed)}
        self.axes = {site.name: axis for site in model.plan.sites if (axis := channel_axis(site)) is not None}
        self.samples = 0

    @torch.no_grad()
    def see(self, leaves: tuple[torch.Tensor, ...]) -> None:
        new = self.model.samples_in(leaves)
        self.samples += new
        crossing = run_prefix(self.model.program, leaves)
        taught: dict[str, torch.Tensor] = {}

        def note(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            site = str(marker.args[1])
            if self.clipped:
                threshold = self.model.thresholds[site]
                value = value.clamp(-max(threshold.negative, 0.0), max(threshold.positive, 0.0))
            if site in self.axes:
                taught[site] = self._means(site, value, self.axes[site])
            return value

        run_body(self.model.program, crossing, note)
        self._student(crossing, taught, new / self.samples)

    def _student(self, crossing: Values, taught: Mapping[str, torch.Tensor], share: float) -> None:
        state: dict[str, torch.Tensor] = {}

        def fire(t: int, marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            site = str(marker.args[1])
            neuron, threshold = plain(self.model.neurons[site]), self.model.thresholds[site]
            axis = self.axes.get(site) if t == self.steps else None
            if axis is not None and self.how == "distribution":
                self._learn(site, "offset", taught[site] - self._means(site, value, axis), share)
            frame = self.frames.get(site, Frame())
            state[site], mean, _ = fire_once(neuron, state.get(site), t, frame.enter(value), threshold, count=False)
            if axis is None:
                return frame.leave(mean)
            learnt = "shift" if self.how == "bias" else "gain"
            gap = taught[site] - self._means(site, replace(frame, **{learnt: None}).leave(mean), axis)
            worth = gap if self.how == "bias" else 1 + gap / (max(threshold.positive, threshold.negative) or 1.0)
            self._learn(site, learnt, worth, share)
            return self.frames[site].leave(mean)

        for t in range(1, self.steps + 1):
            run_body(self.model.program, crossing, partial(fire, t))

    def _means(self, site: str, value: torch.Tensor, axis: int) -> torch.Tensor:
        scale = self.frames.get(site, Frame()).scale
        return channel_means(value, axis, None if scale is None else scale**-2)

    def _learn(self, site: str, part: str, seen: torch.Tensor, share: float) -> None:
        """One of a frame's tensors becomes the mean over all batches, of which the last has this share."""
        frame = self.frames.get(site, Frame())
        mean = seen if share == 1 else torch.lerp(getattr(frame, part), seen, share)
        self.frames[site] = replace(frame, **{part: mean})


def channel_axis(site: Site) -> int | None:
    """Where a site that a weight layer reads has its channels; None for others, and where it is the batch's axis."""
    if site.kind not in (SiteKind.CONV, SiteKind.LINEAR) or site.batch_axis is None or site.batch_axis < 0:
        return None
    axis = 1 if site.kind is SiteKind.CONV else len(site.shape) - 1
    return None if axis == site.batch_axis else axis


def channel_means(value: torch.Tensor, axis: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Means over all axes but one, which stay as axes of size 1; float32 at least. `weights` broadcast to the value."""
    others = [i for i in range(value.dim()) if i != axis]
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    if weights is None:
        return value.mean(others, keepdim=True)
    weights = weights.to(value.dtype).expand(value.shape)
    return (value * weights).sum(others, keepdim=True) / weights.sum(others, keepdim=True)
