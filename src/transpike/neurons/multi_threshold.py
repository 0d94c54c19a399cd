"""The multi-threshold neuron of ECMT, as the paper defines it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction
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
    """Round floats to the nearest power of two of their sign, in one add and one mask on the bit pattern."""
    if torch.compiler.is_compiling() and value.device.type == "cpu":
        return _by_splitting(value)
    integer, half, mask = BITS[value.dtype]
    return value.view(integer).add(half).bitwise_and_(mask).view(value.dtype)


def _by_splitting(value: torch.Tensor) -> torch.Tensor:
    """The same by Veltkamp's splitting to one bit, for values below 2^100 (NaN above): the compiler takes bit patterns
    through memory. Not where products and sums are fused, as on GPUs."""
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
    spreads_nan: ClassVar[bool] = True  # compiled for a CPU, of infinity too
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
        return self.level(potential, *self.parameters(threshold, potential.dtype))

    def parameters(self, threshold: Threshold, dtype: torch.dtype) -> tuple[float | None, ...]:
        """What `level` takes: theta of each sign (0: no levels), their inverses, the smallest level and the smallest
        |m| that fires, over theta. No smallest level where what fires is nearest to it or a larger one anyway."""
        positive, negative = max(threshold.positive, 0.0), max(threshold.negative, 0.0)
        smallest = 2.0 ** -(self.levels - 1)
        raised = smallest if self.cutoff < 0.75 else None
        inverses = (inverse(positive, dtype), inverse(negative, dtype))
        return positive, negative, *inverses, raised, self.cutoff * smallest

    @staticmethod
    def level(
        potential: torch.Tensor, positive: Any, negative: Any, up: Any, down: Any, smallest: Any, least: Any
    ) -> torch.Tensor:
        """Q(m); parameters are numbers or, but for those that are 0 or None, 0-dimensional tensors."""
        if isinstance(positive, torch.Tensor) and isinstance(negative, torch.Tensor):
            return _level_of_size(potential, positive, negative, up, down, smallest, least)
        low, high = bounds(positive, negative)
        ratio = times_by_sign(potential, up, down)
        return times_by_sign(nearest_level(ratio, smallest, least, low, high), positive, negative)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        silent = Threshold(max(threshold.positive, 0.0), max(threshold.negative, 0.0))
        return signed_amplitudes(silent, range(1 - self.levels, 1))


def _level_of_size(
    potential: torch.Tensor, positive: Any, negative: Any, up: Any, down: Any, smallest: Any, least: Any
) -> torch.Tensor:
    """Q(m) compiled, for levels of both signs: a size has one bound to keep, not two, which is a fifth quicker."""
    same = positive is negative
    size = potential.abs() * up if same else torch.relu(potential) * up + torch.relu(-potential) * down
    level = nearest_power_of_two(size).clamp_(max=1.0)
    level = level if smallest is None else level.clamp_(min=smallest)
    level = torch.where(size < least, 0.0, level)
    if same:
        return torch.copysign(level * positive, potential)
    return level * torch.where(potential < 0, -negative, positive)


def signed_amplitudes(threshold: Threshold, exponents: range) -> tuple[float, ...]:
    """theta 2^k for both signs, without those that are 0."""
    pairs = ((1.0, threshold.positive), (-1.0, threshold.negative))
    return tuple(sign * theta * 2.0**k for sign, theta in pairs for k in exponents if theta != 0)


@functools.lru_cache(maxsize=4096)
def inverse(theta: float, dtype: torch.dtype) -> float:
    """1 / theta in a dtype, rounded up, so that what is a tie of levels, 1.5 theta 2^k, stays one; 0 for no levels."""
    if theta == 0:
        return 0.0
    found = torch.tensor(1 / theta, dtype=dtype)
    if Fraction(found.item()) * Fraction(theta) < 1:
        found = torch.nextafter(found, torch.tensor(torch.inf, dtype=dtype))
    return found.item()


def nearest_level(ratio: torch.Tensor, smallest: Any, least: Any, low: float, high: float) -> torch.Tensor:
    """Q in units of theta: what is nearest of 2^-k with the ratio's sign, from `smallest` to the bound of its sign; 0
    where |ratio| < least. Compiled, it is NaN where the ratio is NaN or infinite."""
    if smallest is None:
        return nearest_power_of_two(silence(ratio, least)).clamp_(low, high)
    size = ratio.abs()
    level = nearest_power_of_two(size).clamp_(max=1.0).clamp_(min=smallest)
    level = with_sign(torch.where(size < least, 0.0, level), ratio)
    return level if low and high else level.clamp_(low, high)


def silence(ratio: torch.Tensor, least: Any) -> torch.Tensor:
    """Zero where |ratio| < least; NaN stays."""
    if not isinstance(least, float):
        return torch.where(ratio.abs() < least, 0.0, ratio)
    # Without a mask: a bool tensor costs two more passes over memory.
    below = torch.nextafter(torch.tensor(least, dtype=ratio.dtype), torch.tensor(0.0, dtype=ratio.dtype)).item()
    return torch.nn.functional.hardshrink(ratio, below)


def with_sign(size: torch.Tensor, potential: torch.Tensor) -> torch.Tensor:
    """The sizes with the potentials' signs. Compilers vectorise a choice, and eager PyTorch has one pass for it."""
    return torch.where(potential < 0, -size, size) if torch.compiler.is_compiling() else size.copysign_(potential)


def bounds(positive: Any, negative: Any) -> tuple[float, float]:
    """The least and the largest level over theta: 0 for a sign without levels."""
    return -1.0 * (not is_zero(negative)), 1.0 * (not is_zero(positive))


def times_by_sign(value: torch.Tensor, positive: Any, negative: Any) -> torch.Tensor:
    """A new tensor: values times the number of their sign."""
    if positive is negative or is_zero(negative):
        return value * positive
    if is_zero(positive):
        return value * negative
    if positive == negative:
        return value * positive
    return value.clamp(min=0).mul_(positive).add_(value.clamp(max=0), alpha=negative)  # quicker than a choice


def one_scale(positive: Any, negative: Any) -> bool:
    """Whether one threshold is all there is: both signs have it, or one sign has no levels."""
    return positive is negative or is_zero(positive) or is_zero(negative) or bool(positive == negative)


def is_zero(value: Any) -> bool:
    """Of a parameter: a kernel is compiled for those that are 0, and has tensors of those that are not."""
    return isinstance(value, float) and value == 0


def signed_scale(potential: torch.Tensor, positive: Any, negative: Any) -> tuple[Any, Any]:
    """What to divide each potential by, and what a level of 1 is worth to it (0 where its sign has no levels)."""
    if positive is negative:
        return (1.0 if is_zero(positive) else positive), positive
    scales = (negative if is_zero(positive) else positive, positive if is_zero(negative) else negative)
    if any(isinstance(side, torch.Tensor) for side in scales):
        scale, amplitude = (torch.where(potential >= 0, *pair) for pair in (scales, (positive, negative)))
        return scale, amplitude
    scale = _by_sign(potential, (scales[0] or 1.0, scales[1] or 1.0))
    return scale, scale if scales == (positive, negative) != (0.0, 0.0) else _by_sign(potential, (positive, negative))


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
