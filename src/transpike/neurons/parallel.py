"""The parallel neuron: the spikes of T time-steps at once, a closed form of the mean input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import sum_step
from .trajectory import state_dtype


@dataclass(frozen=True)
class Parallel:
    """Integrate-and-fire over a window of T time-steps whose inputs have all arrived: only their mean counts.

        count = clip(floor((T M_in + theta/2) / theta), 0, T);   M_out = theta count / T

    That is integrate-and-fire from half a threshold on a constant input (`MultiThreshold(1, 0.5)` in T steps), and the
    QCFS activation with L = T levels; there is no unevenness, because layer after layer waits for its whole window. A
    step here is that window: one evaluation of the network whatever T is; on a chip latency is T times the depth.
    Spikes are counted one by one. The train is sorted, u = theta/T is what each is worth, and fired one after the other
    they are the steps of this neuron: Q(m) = u where m >= u/2. A further window says what the one before has clipped.
    Arguments: levels -- T.
    Source: Parallel Conversion (ICML 2025, arXiv 2412.13610). Deviation: where calibration gives levels to both signs
    there is a second bank, Q(m) = -u where m < -u/2, and both banks have the larger threshold of the two.
    """

    name: ClassVar[str] = "parallel"
    code: ClassVar[str] = "sum"
    levels: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or not 1 <= self.levels <= 255:
            raise ConfigError(f"levels must be a whole number from 1 to 255, not {self.levels!r}")

    @property
    def pulses(self) -> int:
        return self.levels

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One spike time of the window."""
        return sum_step(lambda potential: self.quantise(potential, threshold), state, t, mean_in)

    def at_once(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold, *, count: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The whole window: what `levels` steps give but for rounding, and how many spikes there are (uint8)."""
        drive = mean_in.to(state_dtype(mean_in.dtype))
        unit, low, high = self._bounds(threshold)
        spikes = torch.div(drive if state is None else drive - state, unit or 1.0)
        spikes = spikes.add_(0.5).floor_().clamp_(low, high)
        state = spikes * unit if state is None else torch.add(state, spikes, alpha=unit)
        return state, state, spikes.abs_().to(torch.uint8) if count else None

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        unit, low, high = self._bounds(threshold)
        # A tie fires up and never down: fired both ways it would go on for ever.
        fired = (potential >= unit / 2).to(potential.dtype) * (high > 0)
        return (fired - (potential < -unit / 2).to(potential.dtype) * (low < 0)).mul_(unit)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        unit, low, high = self._bounds(threshold)
        return (unit,) * (high > 0) + (-unit,) * (low < 0)

    def _bounds(self, threshold: Threshold) -> tuple[float, int, int]:
        """u, and the least and the largest number of signed spikes."""
        unit = max(threshold.positive, threshold.negative, 0.0) / self.levels
        return unit, -self.levels * (threshold.negative > 0), self.levels * (threshold.positive > 0)
