"""A streaming histogram with constant relative resolution: the same whatever the batch size and order."""

from __future__ import annotations

import torch

MANTISSA_BITS = 9  # relative resolution 2^-9: a quantile is off by 0.1 % at most (half a bin)
SMALLEST_EXPONENT, LARGEST_EXPONENT = -40, 40  # magnitudes below 2^-40 count as the first bin, above 2^41 as the last
BINS = (LARGEST_EXPONENT - SMALLEST_EXPONENT + 1) << MANTISSA_BITS
_SHIFT = 23 - MANTISSA_BITS
_OFFSET = (SMALLEST_EXPONENT + 127) << MANTISSA_BITS


class Histogram:
    """Counts of |x| per sign in logarithmic bins, read off the exponent and the first mantissa bits of float32.

    Counting is addition, so the result does not depend on how samples are batched or ordered, and two histograms of
    disjoint samples merge exactly. Quantiles are exact to the width of a bin: relative error <= 2^-10; the extremes
    are exact. Memory: 2 x 41,472 counts a site.
    """

    def __init__(self) -> None:
        self.positive = torch.zeros(BINS, dtype=torch.int64)
        self.negative = torch.zeros(BINS, dtype=torch.int64)
        self.zeros = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def update(self, values: torch.Tensor) -> bool:
        """Count a tensor. Returns False, and counts nothing, when it holds NaN or infinity."""
        flat = values.detach().flatten().to(torch.float32)
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            return False
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        bits = flat.view(torch.int32)
        index = (bits & 0x7FFFFFFF).bitwise_right_shift_(_SHIFT).sub_(_OFFSET).clamp_(-1, BINS - 1).add_(1)
        index = index.add_((bits < 0).to(torch.int32) * (BINS + 1))
        counts = torch.bincount(index, minlength=2 * (BINS + 1)).cpu()
        zero = int((flat == 0).sum())
        tiny_positive, tiny_negative = int(counts[0]), int(counts[BINS + 1])
        negative_zeros = int(((flat == 0) & (bits < 0)).sum()) if zero else 0
        self.positive += counts[1 : BINS + 1]
        self.negative += counts[BINS + 2 :]
        self.positive[0] += tiny_positive - (zero - negative_zeros)
        self.negative[0] += tiny_negative - negative_zeros
        self.zeros += zero
        return True

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram: as if one had seen both sets of samples."""
        self.positive += other.positive
        self.negative += other.negative
        self.zeros += other.zeros
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    @property
    def count(self) -> int:
        return int(self.positive.sum() + self.negative.sum()) + self.zeros

    def magnitude_quantile(self, fraction: float) -> float:
        """The smallest magnitude that `fraction` of all |x| do not exceed (the exact maximum for 1)."""
        if fraction >= 1:
            return max(self.maximum, -self.minimum)
        cumulative = (self.positive + self.negative).cumsum(0) + self.zeros
        return _magnitude(cumulative, fraction * self.count)

    def quantile(self, fraction: float) -> float:
        """The signed quantile (the exact extremes for 0 and 1)."""
        if fraction >= 1:
            return self.maximum
        if fraction <= 0:
            return self.minimum
        rank = fraction * self.count
        below = int(self.negative.sum())
        if rank <= below:  # counted from the most negative value inwards
            return -_magnitude(self.negative.flip(0).cumsum(0), rank, flipped=True)
        if rank <= below + self.zeros:
            return 0.0
        return _magnitude(self.positive.cumsum(0) + below + self.zeros, rank)


def _magnitude(cumulative: torch.Tensor, rank: float, *, flipped: bool = False) -> float:
    index = int(torch.searchsorted(cumulative, torch.tensor(rank, dtype=torch.float64).ceil().to(torch.int64)))
    index = min(index, BINS - 1)
    index = BINS - 1 - index if flipped else index
    low = torch.tensor((index + _OFFSET) << _SHIFT, dtype=torch.int32).view(torch.float32)
    high = torch.tensor((index + 1 + _OFFSET) << _SHIFT, dtype=torch.int32).view(torch.float32)
    return float((low.double() + high.double()) / 2)
