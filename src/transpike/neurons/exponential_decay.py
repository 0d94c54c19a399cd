"""The exponential-decay neuron: the digits of a value in a base between 1 and 2, said once within one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import sum_step
from .few_spikes import FewSpikes
from .multi_threshold import signed_amplitudes, with_sign


@dataclass(frozen=True)
class ExponentialDecay:
    """Signed neuron that injects a value once and takes it apart over K decaying amplitudes, theta d^k, k = 1..K.

        u[0] = x;  s[k] = H(u[k] - V[k]);  u[k+1] = u[k] - s[k] V[k];  M_out = sum of s[k] V[k];  V[k] = theta d^k

    Written as a quantiser, fired K times:  Q(m) = the largest V[k] not above |m| + e/2, with m's sign; 0 where there is
    none; e = V[K].  For 1/2 <= d < 1 and |x| + e/2 < theta the two are the same: where V[k] is the largest level below
    u, what is left is below V[k] (1/d - 1) <= V[k], so no level fires twice and the order is that of the window. Beyond
    the range the largest level fires again in place of smaller ones; where the other sign has a smaller threshold, its
    levels also correct what rounding up overshot.
    Arguments: levels -- K, the window; a step is one window. decay -- d = exp(-dt / tau). At 1/2, the halving
    initialisation, this is a successive-approximation code: exactly `FewSpikes` with half its threshold, so that all K
    digits lie below theta. Above 1/2 neighbouring levels overlap and 1s are rarer, but K digits end at theta d^K.
    Source: the identity neuron of MBE, arXiv 2508.07710, whose parameters are fixed and shared by the network. There
    V, reset and output decay each at their own rate; for the identity the three are one. Differences: one basis (with
    the same fixed parameters N bases would send every spike N times and add nothing); signed levels in place of two
    banks; the membrane starts at e/2, so the value is rounded, not cut off; later steps correct what earlier ones left.
    """

    name: ClassVar[str] = "exponential-decay"
    code: ClassVar[str] = "sum"
    levels: int = 16
    decay: float = 0.5

    def __post_init__(self) -> None:
        FewSpikes(self.levels)  # the same limits
        if not isinstance(self.decay, (int, float)) or not 0.5 <= self.decay < 1:
            raise ConfigError(f"decay must be a number from 0.5 to below 1, not {self.decay!r}")

    @property
    def pulses(self) -> int:
        return self.levels

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return sum_step(lambda potential: self.quantise(potential, threshold), state, t, mean_in)

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        if self.decay == 0.5:
            return self.level(potential, *self.parameters(threshold, potential.dtype))
        levels = torch.tensor(self._ladder(threshold), dtype=potential.dtype, device=potential.device)
        return _largest_below(potential, levels[: self.levels].contiguous(), levels[self.levels :].contiguous())

    def parameters(self, threshold: Threshold, dtype: torch.dtype) -> tuple[float, ...]:
        """What `level` takes: the largest level of each sign, then the smallest over the largest, or, where levels are
        no powers of two of each other, all of one sign and of the other, smallest first."""
        tops = (max(threshold.positive, 0.0) * self.decay, max(threshold.negative, 0.0) * self.decay)
        return (*tops, 2.0 ** (1 - self.levels)) if self.decay == 0.5 else (*tops, *self._ladder(threshold))

    def _ladder(self, threshold: Threshold) -> tuple[float, ...]:
        tops = (max(threshold.positive, 0.0), max(threshold.negative, 0.0))
        return tuple(top * self.decay**k for top in tops for k in range(self.levels, 0, -1))

    @staticmethod
    def level(potential: torch.Tensor, positive: Any, negative: Any, *levels: Any) -> torch.Tensor:
        """Q(m); parameters are numbers or 0-dimensional tensors."""
        if len(levels) == 1:
            return FewSpikes.level(potential, positive, negative, *levels)
        half = len(levels) // 2
        size, up = potential.abs(), potential >= 0
        size = size + torch.where(up, levels[0], levels[half]) / 2
        found = torch.zeros_like(potential)
        for k in range(half):
            level = torch.where(up, levels[k], levels[half + k])
            reached = size > level if k == 0 else size >= level  # a tie at the smallest level stays silent
            found = torch.where(reached, level, found)
        return with_sign(found, potential)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        if self.decay == 0.5:
            halves = Threshold(*self.parameters(threshold, torch.float64)[:2])
            return signed_amplitudes(halves, range(1 - self.levels, 1))
        ladder = self._ladder(threshold)
        return tuple(v for v in (*ladder[: self.levels], *(-v for v in ladder[self.levels :])) if v != 0)


def _largest_below(potential: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """What `level` gives, by search: one pass for each sign instead of one for each level."""
    found = []
    for levels in (positive, negative):
        size = potential.abs() + levels[0] / 2
        index = torch.bucketize(size, levels, right=True)  # how many levels are not above
        index = torch.where(size > levels[0], index, 0)
        found.append(torch.cat([levels.new_zeros(1), levels])[index])
    return with_sign(torch.where(potential >= 0, *found), potential)
