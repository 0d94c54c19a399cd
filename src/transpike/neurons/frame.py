"""Where a neuron stands: what differs between the neurons of one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from ..errors import ConfigError
from ..types import Threshold
from .trajectory import Neuron, state_dtype


@dataclass(frozen=True, eq=False)
class Frame:
    """Thresholds per channel, head or neuron, and what corrects a neuron's input and output.

        M_out = gain scale N(M_in / scale + offset) + shift

    Every tensor broadcasts against the site's tensor (size 1 along its batch axis); None leaves it out.
    scale -- the neuron's thresholds in units of the site's. Powers of two keep the levels of all neurons on one ladder,
    so no layer needs further copies of its weights; other values are folded into the input channels of the weights
    behind. offset -- a constant current, in units of the neuron's own threshold scale (a calibrated initial potential).
    gain -- what a spike is worth behind the neuron, folded into the weights like scale. shift -- a constant added
    behind, folded into the bias of the layer that reads the site.
    """

    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device) -> Frame:
        return Frame(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def enter(self, mean_in: torch.Tensor) -> torch.Tensor:
        """M_in in the neuron's own units."""
        value = mean_in.to(state_dtype(mean_in.dtype))
        value = value if self.scale is None else value / self.scale
        return value if self.offset is None else value + self.offset

    def spread(self, emitted: torch.Tensor) -> torch.Tensor:
        """What is emitted, in units of the activation."""
        value = emitted if self.scale is None else emitted * self.scale
        return value if self.gain is None else value * self.gain

    def leave(self, mean_out: torch.Tensor) -> torch.Tensor:
        """M_out in units of the activation."""
        value = self.spread(mean_out)
        return value if self.shift is None else value + self.shift

    @cached_property
    def octaves(self) -> tuple[int, int] | None:
        """The smallest and largest exponent, where the frame is powers of two and nothing else."""
        if self.scale is None or set(self.tensors()) != {"scale"}:
            return None
        mantissa, exponent = torch.frexp(self.scale.float())
        return (int(exponent.min()) - 1, int(exponent.max()) - 1) if bool((mantissa == 0.5).all()) else None


SETTINGS = ("name", "code", "levels", "pulses", "cutoff", "decay")  # of a neuron, whatever its frame


@dataclass(frozen=True, eq=False)
class Framed:
    """A neuron in its frame, in units of the activation: itself a neuron (see `Neuron`)."""

    neuron: Neuron
    frame: Frame

    def __getattr__(self, name: str) -> Any:
        if name not in SETTINGS:  # what else a neuron has is in its own units: ask `plain(neuron)`
            raise AttributeError(f"a neuron in a frame has no {name}")
        return getattr(self.neuron, name)

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        state, mean_out, emitted = self.neuron.step(state, t, self.frame.enter(mean_in), threshold)
        return state, self.frame.leave(mean_out), self.frame.spread(emitted)

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        """Q(m) of a membrane in units of the activation. Raises ConfigError where levels are no powers of two apart."""
        scale = self.exact().scale
        return self.neuron.quantise(potential / scale, threshold) * scale

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        """What any neuron of the site can emit. Raises ConfigError where levels are no powers of two apart."""
        low, high = self.exact().octaves  # type: ignore[misc]
        own = self.neuron.amplitudes(threshold)
        return tuple(dict.fromkeys(amplitude * 2.0**k for k in range(high, low - 1, -1) for amplitude in own))

    def exact(self) -> Frame:
        if self.frame.octaves is None:
            raise ConfigError(
                "this network has thresholds or corrections by channel that are not powers of two; they cannot be "
                "written in spikes without changing weights: convert with another recipe"
            )
        return self.frame


def framed(neuron: Neuron, frame: Frame | None) -> Neuron:
    return neuron if frame is None else Framed(neuron, frame)  # type: ignore[return-value]


def plain(neuron: Neuron) -> Neuron:
    """The neuron without its frame: what each neuron of the site is for itself."""
    return neuron.neuron if isinstance(neuron, Framed) else neuron


def by_ladder(neuron: Neuron) -> tuple[tuple[Neuron, float], ...]:
    """(neuron, its share of the site's): each with the levels it needs.

    A neuron whose thresholds lie k octaves above the site's has no use for its k largest levels: the site's largest
    covers what calibration saw.
    """
    own = plain(neuron)
    if not isinstance(neuron, Framed) or neuron.frame.octaves is None:
        return ((own, 1.0),)
    above = torch.frexp(neuron.frame.scale.float())[1].sub(1).clamp(0, own.levels - 1)  # type: ignore[union-attr]
    octaves, counts = above.unique(return_counts=True)
    return tuple(
        (replace(own, levels=own.levels - int(k)), int(count) / above.numel())  # type: ignore[type-var]
        for k, count in zip(octaves, counts, strict=True)
    )


def own_units(neuron: Neuron, trains: list[torch.Tensor]) -> list[torch.Tensor]:
    """What was emitted, each neuron's in its own units: as without a frame."""
    if not isinstance(neuron, Framed):
        return trains
    worth = neuron.frame.spread(torch.ones_like(trains[0]))
    return [emitted / worth for emitted in trains]


def frames_to(frames: Mapping[str, Frame], device: torch.device) -> dict[str, Frame]:
    return {name: frame.to(device) for name, frame in frames.items()}
