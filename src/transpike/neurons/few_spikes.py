"""The few-spikes (phase) neuron: the binary digits of a value, one spike per digit that is 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import sum_step
from .multi_threshold import BITS, signed_amplitudes, signed_scale, with_sign


@dataclass(frozen=True)
class FewSpikes:
    """Signed neuron that says a value in K binary digits, theta 2^-k, k = 0..K-1, within one step; K firings at most.

        Q(m) = the largest level not above |m| + e/2, with m's sign;  0 where there is none;  e = theta 2^-(K-1)

    Fired K times, this is the binary expansion of |m| rounded to K digits: phase code in the sign and magnitude form,
    about K/2 spikes for a full-range value where the cascade of nearest levels takes K/3.
    Arguments: levels -- K. A step here is the window of K phases in which the digits are sent one after the other; each
    layer waits for the window of the one before, so on a chip latency is K times the depth.
    Source: few-spikes neurons (Stoeckl and Maass 2021) with theta_k = h_k = d_k = theta 2^-k, as LAS (arXiv 2505.09659)
    uses them; there negative values have a bank of their own, here they have signed levels.
    """

    name: ClassVar[str] = "few-spikes"
    code: ClassVar[str] = "sum"
    levels: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or not 1 <= self.levels <= 24:
            raise ConfigError(f"levels must be a whole number from 1 to 24, not {self.levels!r}")

    @property
    def pulses(self) -> int:
        return self.levels

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return sum_step(lambda potential: self.quantise(potential, threshold), state, t, mean_in)

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        return self.level(potential, *self.parameters(threshold, potential.dtype))

    def parameters(self, threshold: Threshold, dtype: torch.dtype) -> tuple[float, ...]:
        """What `level` takes: theta of each sign, and the smallest level over theta."""
        return max(threshold.positive, 0.0), max(threshold.negative, 0.0), 2.0 ** (1 - self.levels)

    @staticmethod
    def level(potential: torch.Tensor, positive: Any, negative: Any, smallest: Any) -> torch.Tensor:
        """Q(m); parameters are numbers or 0-dimensional tensors."""
        scale, amplitude = signed_scale(potential, positive, negative)
        size = (potential / scale).abs_().add_(smallest / 2)
        # A tie, |m| = e/2, stays silent: fired, it would be the same tie with the other sign.
        size = torch.where(size > smallest, size, 0.0)
        integer, _, mask = BITS[size.dtype]
        level = size.view(integer).bitwise_and(mask).view(size.dtype).clamp(max=1.0)
        return with_sign(level.mul_(amplitude), potential)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        return signed_amplitudes(
            Threshold(max(threshold.positive, 0.0), max(threshold.negative, 0.0)), range(1 - self.levels, 1)
        )
