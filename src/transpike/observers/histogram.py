"""A streaming histogram with constant relative resolution: the same whatever the batch size and order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

MANTISSA_BITS = 9  # relative resolution 2^-9: a quantile is off by 0.1 % at most (half a bin)
BINS = 1 << (8 + MANTISSA_BITS)  # per sign: one for each exponent and leading mantissa bits of float32
_SHIFT = 23 - MANTISSA_BITS
CHUNK = 1 << 19  # elements looked at together, so that temporaries stay in cache


class Histogram:
    """Counts of x in logarithmic bins per sign: the sign, exponent and first mantissa bits of float32 are the bin.

    Counting is addition, so the result does not depend on how samples are batched or ordered, and two histograms of
    disjoint samples merge exactly. Quantiles are exact to the width of a bin, relative error <= 2^-10; the extremes
    are exact; magnitudes below 2^-126 count as zero. Memory: 2 MB a site.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * BINS, dtype=torch.int64)  # positive bins by magnitude, then negative ones
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def update(self, values: torch.Tensor) -> bool:
        """Count a tensor. Returns False, and counts nothing, when it holds NaN or infinity."""
        flat = values.detach().flatten()
        if not flat.numel():
            return True
        low, high = (float(v) + 0.0 for v in torch.aminmax(flat))  # -0.0 and 0.0 are one extreme, whoever comes first
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            return False
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        for part in flat.split(CHUNK):
            code = part.to(torch.float32).view(torch.int32).bitwise_right_shift(_SHIFT).bitwise_and_(2 * BINS - 1)
            if code.is_cuda:
                self.counts += torch.bincount(code, minlength=2 * BINS).cpu()
            else:  # in place: several times faster than making a histogram and adding it
                self.counts.index_add_(0, code, torch.ones(1, dtype=torch.int64).expand(code.numel()))
        return True

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram: as if one had seen both sets of samples."""
        self.counts += other.counts
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    def merge_all(self, extremes: Iterable[tuple[float, float]], add: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """As `merge`, with histograms in other processes: (minimum, maximum) of each, and what adds up tensors."""
        self.counts = add(self.counts)
        lows, highs = zip(*extremes, strict=True)
        self.minimum, self.maximum = min(lows), max(highs)

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def peak(self) -> float:
        """The largest |x|, exactly."""
        return max(self.maximum, -self.minimum)

    def magnitude_quantile(self, fraction: float) -> float:
        """The smallest magnitude that `fraction` of all |x| do not exceed (the exact maximum for 1)."""
        if fraction >= 1:
            return self.peak
        found = _middle(_rank(self.counts[:BINS] + self.counts[BINS:], fraction))
        return min(found, self.peak)

    def magnitudes(self, bits: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
        """(|x|, share of all x) in bins of relative width 2^-bits, empty ones left out; float64."""
        folded = (self.counts[:BINS] + self.counts[BINS:]).view(-1, 1 << (MANTISSA_BITS - bits)).sum(1)
        index = folded.nonzero().flatten()
        wide = 23 - bits
        edges = torch.stack([index << wide, (index + 1) << wide]).to(torch.int32).view(torch.float32).double()
        values = torch.where(index < 1 << bits, 0.0, edges.mean(0))
        return values, folded[index].double() / self.count

    def bins(self, sign: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Magnitudes of one sign (0: of both) by bin, ascending, without zeros and empty bins: the lower and upper
        edges, and the share of all x; float64."""
        halves = {1: self.counts[:BINS], -1: self.counts[BINS:], 0: self.counts[:BINS] + self.counts[BINS:]}
        index = halves[sign].nonzero().flatten()
        index = index[index >= 1 << MANTISSA_BITS]
        edges = torch.stack([index << _SHIFT, (index + 1) << _SHIFT]).to(torch.int32).view(torch.float32).double()
        return edges[0], edges[1], halves[sign][index].double() / max(self.count, 1)

    def quantile(self, fraction: float) -> float:
        """The signed quantile (the exact extremes for 0 and 1)."""
        if fraction >= 1:
            return self.maximum
        if fraction <= 0:
            return self.minimum
        ascending = torch.cat([self.counts[BINS:].flip(0), self.counts[:BINS]])
        index = _rank(ascending, fraction)
        found = _middle(index - BINS) if index >= BINS else -_middle(BINS - 1 - index)
        return max(self.minimum, min(found, self.maximum))


def _rank(counts: torch.Tensor, fraction: float) -> int:
    """The first bin up to which `fraction` of all counts lie."""
    cumulative = counts.cumsum(0)
    wanted = max(1, -int(-fraction * int(cumulative[-1]) // 1))
    return int(torch.searchsorted(cumulative, wanted))


def _middle(index: int) -> float:
    """The value in the middle of a magnitude bin; 0 for the bins of zero and denormal numbers."""
    if index < 1 << MANTISSA_BITS:
        return 0.0
    edges = torch.tensor([index << _SHIFT, (index + 1) << _SHIFT], dtype=torch.int32).view(torch.float32)
    return float(edges.double().mean())
