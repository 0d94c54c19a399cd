"""The multi-threshold neuron of ECMT, as its published implementation runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import rate_step
from .multi_threshold import BITS, signed_amplitudes, signed_scale, silence, with_sign


@dataclass(frozen=True)
class PublishedMultiThreshold:
    """Signed neuron with K levels per sign, theta 2^k, k = 0..K-1; the threshold is the SMALLEST level.

        fires +p 2^k for the largest k with m >= p (2^k - 1/2), else -q 2^k for the largest k with -m >= q (2^k - 1/2)

    The slack is half of the smallest level for every k, so the rule floors large potentials and rounds only at k = 0.
    Levels are scanned from large to small and the positive sign is asked first, which decides what happens for the
    negative thresholds that the published calibration can produce (then the amplitude has the other sign).
    Source: the released code of arXiv 2502.21193 (TwoSideNeuron); the paper itself has the nearest level.
    """

    name: ClassVar[str] = "published-multi-threshold"
    code: ClassVar[str] = "rate"
    pulses: ClassVar[int] = 1
    levels: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 24:
            raise ConfigError(f"levels must be a whole number from 1 to 24, not {self.levels!r}")

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return rate_step(lambda potential: self.quantise(potential, threshold), state, t, mean_in)

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        """Q(m). With both thresholds positive, floor(|m| / theta + 1/2) to a power of two is the rule above."""
        if threshold.positive < 0 or threshold.negative < 0:
            return self._scan(potential, threshold)
        return self.level(potential, *self.parameters(threshold, potential.dtype))

    def parameters(self, threshold: Threshold, dtype: torch.dtype) -> tuple[float, ...]:
        """What `level` takes: theta of each sign, and the largest level over theta. None for negative thresholds."""
        return threshold.positive, threshold.negative, 2.0 ** (self.levels - 1)

    @staticmethod
    def level(potential: torch.Tensor, positive: Any, negative: Any, largest: Any) -> torch.Tensor:
        """Q(m) with thresholds of at least 0; parameters are numbers or 0-dimensional tensors."""
        scale, amplitude = signed_scale(potential, positive, negative)
        size = silence((potential / scale).abs_().add_(0.5), 1.0)
        integer, _, mask = BITS[size.dtype]
        level = size.view(integer).bitwise_and_(mask).view(size.dtype).clamp_(max=largest)
        return with_sign(level.mul_(amplitude), potential)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        return signed_amplitudes(threshold, range(self.levels))

    def _scan(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        emitted = torch.zeros_like(potential)
        silent = torch.ones_like(potential, dtype=torch.bool)
        for k in reversed(range(self.levels)):
            for sign, theta in ((1.0, threshold.positive), (-1.0, threshold.negative)):
                fires = silent & (sign * potential >= theta * (2**k - 0.5))
                emitted = torch.where(fires, sign * theta * 2**k, emitted)
                silent = silent & ~fires
        return emitted
