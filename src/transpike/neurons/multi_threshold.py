"""The multi-threshold neuron of ECMT, as the paper defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import rate_step

# Nearest power of two of a float: add half a mantissa, clear the mantissa. The tie 1.5 * 2^k goes up.
BITS = {
    torch.float32: (torch.int32, 0x00400000, -0x00800000),
    torch.float64: (torch.int64, 0x0008000000000000, -0x0010000000000000),
}


def nearest_power_of_two(value: torch.Tensor) -> torch.Tensor:
    """Round non-negative floats to the nearest power of two, in one add and one mask on the bit pattern."""
    if torch.compiler.is_compiling() and value.device.type == "cpu":
        return _by_splitting(value)
    integer, half, mask = BITS[value.dtype]
    return value.view(integer).add(half).bitwise_and_(mask).view(value.dtype)


def _by_splitting(value: torch.Tensor) -> torch.Tensor:
    """The same by Veltkamp's splitting to one bit, for values below 2^100: the compiler takes bit patterns through
    memory. Not where products and sums are fused, as on GPUs."""
    large = value * (2.0 ** (23 if value.dtype == torch.float32 else 52) + 1)
    return large + (value - large)


@dataclass(frozen=True)
class MultiThreshold:
    """Signed neuron with n levels per sign, theta 2^-k, k = 0..n-1; the threshold is the LARGEST level.

        Q(m) = the level nearest to m, with its sign;  0 where |m| < cutoff theta 2^-(n-1)

    Arguments: levels -- n, per sign. cutoff -- the smallest |m| that fires, in units of the smallest level: 1 is the
    paper's rule; 0.5 rounds to the nearest of zero and the smallest level.
    Source: arXiv 2502.21193, multi-threshold neuron; restated with theta as the largest level in later work. Ties go
    to the larger level, which the paper leaves open.
    """

    name: ClassVar[str] = "multi-threshold"
    code: ClassVar[str] = "rate"
    pulses: ClassVar[int] = 1
    levels: int = 8
    cutoff: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 24:
            raise ConfigError(f"levels must be a whole number from 1 to 24, not {self.levels!r}")
        if not 0 < self.cutoff <= 1:
            raise ConfigError(f"cutoff must be in (0, 1], not {self.cutoff!r}")

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return rate_step(lambda potential: self.quantise(potential, threshold), state, t, mean_in)

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        """Q(m) for potentials of any shape, in float32 or float64. A threshold of 0 silences its sign."""
        return self.level(potential, *self.parameters(threshold))

    def parameters(self, threshold: Threshold) -> tuple[float, ...]:
        """What `level` takes: theta of each sign, the smallest level and the smallest |m| that fires, over theta."""
        smallest = 2.0 ** -(self.levels - 1)
        return max(threshold.positive, 0.0), max(threshold.negative, 0.0), smallest, self.cutoff * smallest

    @staticmethod
    def level(potential: torch.Tensor, positive: Any, negative: Any, smallest: Any, least: Any) -> torch.Tensor:
        """Q(m); parameters are numbers or 0-dimensional tensors."""
        scale, amplitude = signed_scale(potential, positive, negative)
        size = silence((potential / scale).abs_(), least)
        level = nearest_power_of_two(size.clamp_(max=1.0))
        if not isinstance(least, float) or least < 0.75 * smallest:
            # Below 3/4 of the smallest level the nearest power of two is a level that does not exist.
            level = torch.where(size > 0, level.clamp(min=smallest), level)
        return with_sign(level.mul_(amplitude), potential)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        silent = Threshold(max(threshold.positive, 0.0), max(threshold.negative, 0.0))
        return signed_amplitudes(silent, range(1 - self.levels, 1))


def signed_amplitudes(threshold: Threshold, exponents: range) -> tuple[float, ...]:
    """theta 2^k for both signs, without those that are 0."""
    pairs = ((1.0, threshold.positive), (-1.0, threshold.negative))
    return tuple(sign * theta * 2.0**k for sign, theta in pairs for k in exponents if theta != 0)


def silence(size: torch.Tensor, least: Any) -> torch.Tensor:
    """Zero where size < least."""
    if not isinstance(least, float):
        return torch.where(size >= least, size, 0.0)
    # Without a mask: a bool tensor costs two more passes over memory.
    below = torch.nextafter(torch.tensor(least, dtype=size.dtype), torch.tensor(0.0, dtype=size.dtype)).item()
    return torch.nn.functional.threshold(size, below, 0.0, inplace=True)


def with_sign(size: torch.Tensor, potential: torch.Tensor) -> torch.Tensor:
    """The sizes with the potentials' signs. Compilers vectorise a choice, and eager PyTorch has one pass for it."""
    return torch.where(potential < 0, -size, size) if torch.compiler.is_compiling() else size.copysign_(potential)


def signed_scale(potential: torch.Tensor, positive: Any, negative: Any) -> tuple[Any, Any]:
    """What to divide each potential by, and what a level of 1 is worth to it (0 where its sign has no levels)."""
    if isinstance(positive, torch.Tensor):
        theta = positive if positive is negative else torch.where(potential >= 0, positive, negative)
        return torch.where(theta > 0, theta, 1.0), theta
    amplitudes = (positive, negative)
    either = max(amplitudes) or 1.0
    scales = (amplitudes[0] or either, amplitudes[1] or either)
    scale = _by_sign(potential, scales)
    return scale, scale if scales == amplitudes else _by_sign(potential, amplitudes)


def _by_sign(potential: torch.Tensor, values: tuple[float, float]) -> torch.Tensor | float:
    """The first value where a potential is positive, the second where it is negative."""
    if values[0] == values[1]:
        return values[0]
    middle, half = ((torch.tensor((values[0] + sign * values[1]) / 2, dtype=potential.dtype)) for sign in (1, -1))
    first, second = (torch.tensor(value, dtype=potential.dtype) for value in values)
    if middle + half == first and middle - half == second:  # exact for thresholds of few bits, and 8 times faster
        return torch.copysign(half.abs().to(potential.device), potential if half > 0 else -potential).add_(
            middle.item()
        )
    return torch.where(potential >= 0, first.to(potential.device), second.to(potential.device))
