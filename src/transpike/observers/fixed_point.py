"""Thresholds at the fixed point of the uniform quantiser's squared error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .histogram import Histogram

MOST = 1 << 12  # levels told apart: finer ones than the histogram's bins change nothing
SCAN = 8  # thresholds looked at per octave before the iteration, and how many octaves below the largest activation
DEPTH = 12
ITERATIONS = 40

Moments = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class FixedPoint:
    """The threshold at which a clipping uniform quantiser of N levels has the least squared error on the histogram.

        Q(x) = theta k / N,   k = sum_i 1[x >= b_i],   b_i = (2i - 1) theta / 2N,   i = 1..N

    At a boundary b_i both codes are equally wrong, so moving it changes nothing to first order, and
    d/d theta E[(Q(x) - x)^2] = 0 reads E[(theta k / N - x) k] = 0, the fixed point of theta <- kappa theta with

        kappa = N E[x k] / (theta E[k^2])
              = N sum_i E[x; x >= b_i] / (theta sum_i (2i - 1) P(x >= b_i))

    for any distribution of x. For a Gaussian both sums are the error functions of the paper. Where N is large, kappa is
    1 to about 1/N^2 and the paper's 100 iterations stop short (at 3.2 sigma instead of 3.6 for N = 64 and mean 0), so
    kappa = 1 is found by bisection, around the best of a coarse grid: of several fixed points, that of least error.
    Values lie evenly in their bin.
    Each sign has its own threshold, from its own values; with `symmetric` both have that of |x|. N is the business of
    `calibration.allocate.effective_levels`: T 2^n. margin -- a factor on both.
    Source: DCGS (arXiv 2503.00301), for Gaussian pre-activations of CNNs; on histograms it is ours.
    """

    name: ClassVar[str] = "fixed-point"
    symmetric: bool = False
    margin: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.margin, (int, float)) or not 0 < self.margin < float("inf"):
            raise ConfigError(f"margin must be a positive number, not {self.margin!r}")

    def threshold(self, histogram: Histogram) -> Threshold:
        """Where the search begins: the range."""
        return Threshold(histogram.peak, histogram.peak)

    def at(self, histogram: Histogram, count: int) -> Threshold:
        """The thresholds for N = `count` effective levels."""
        signs = (0,) if self.symmetric else (1, -1)
        found = [self.margin * _of_sign(histogram, sign, min(count, MOST)) for sign in signs]
        return Threshold(found[0], found[-1])


def _of_sign(histogram: Histogram, sign: int, count: int) -> float:
    peak = {0: histogram.peak, 1: histogram.maximum, -1: -histogram.minimum}[sign]
    low, high, share = histogram.bins(sign)
    if not len(share) or not peak > 0:
        return 0.0
    return fixed_point(moments(low, high.clamp(max=peak), share), peak, count)


def fixed_point(tails: Moments, peak: float, count: int) -> float:
    """The theta of least squared error, at most that whose top level just takes in the peak.

    Arguments: tails -- boundaries b [N] -> P(x >= b) and E[x; x >= b]. peak -- the largest x. count -- N.
    """
    index = torch.arange(1, count + 1, dtype=torch.float64)
    odd = 2 * index - 1

    def sums(theta: float) -> tuple[float, float]:
        """E[k^2] and E[x k]."""
        mass, moment = tails(odd * (theta / (2 * count)))
        return float((odd * mass).sum()), float(moment.sum())

    def error(theta: float) -> float:
        square, product = sums(theta)
        return (theta / count) ** 2 * square - 2 * theta / count * product  # but for E[x^2]

    widest = peak * 2 * count / (2 * count - 1)
    grid = [widest * 2.0 ** (-j / SCAN) for j in range(SCAN * DEPTH + 1)]
    best = min(grid, key=error)
    low, high = best * 2.0 ** (-1 / SCAN), min(best * 2.0 ** (1 / SCAN), widest)
    for _ in range(ITERATIONS):
        theta = (low * high) ** 0.5
        square, product = sums(theta)
        low, high = (theta, high) if product * count > theta * square else (low, theta)
    return min((best, (low * high) ** 0.5), key=error)


def moments(low: torch.Tensor, high: torch.Tensor, share: torch.Tensor) -> Moments:
    """P(x >= b) and E[x; x >= b], b > 0, of x spread evenly over bins [low, high], ascending."""
    none = torch.zeros(1, dtype=torch.float64)
    mass = torch.cat([share.flip(0).cumsum(0).flip(0), none])
    moment = torch.cat([(share * (low + high) / 2).flip(0).cumsum(0).flip(0), none])
    width = (high - low).clamp(min=1e-300)

    def tails(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.searchsorted(low, bounds, right=True) - 1  # the bin that a boundary lies in or above
        inside = at.clamp(min=0)
        part = ((high[inside] - bounds) / width[inside]).clamp(0, 1) * share[inside] * (at >= 0)
        above = part * (high[inside] + bounds.clamp(max=high[inside])) / 2
        return mass[at + 1] + part, moment[at + 1] + above

    return tails
