"""Thresholds at a percentile of the activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..types import Threshold
from .histogram import Histogram


@dataclass(frozen=True)
class Percentile:
    """The `fraction`-quantile as base amplitude.

    Arguments: fraction -- in (0, 1]; 1 is the maximum. symmetric -- True: one threshold for both signs, the quantile
    of |x|; False: one per sign, Q(fraction) of x and -Q(1 - fraction) of x, as ECMT does. margin -- a factor on both.
    """

    name: ClassVar[str] = "percentile"
    fraction: float = 0.9999
    symmetric: bool = False
    margin: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, (int, float)) or not 0 < self.fraction <= 1:
            raise ConfigError(f"percentile must be in (0, 1], not {self.fraction!r} (0.99 means 99 %)")
        if not isinstance(self.margin, (int, float)) or not 0 < self.margin < float("inf"):
            raise ConfigError(f"margin must be a positive number, not {self.margin!r}")

    def threshold(self, histogram: Histogram) -> Threshold:
        if self.symmetric:
            theta = histogram.magnitude_quantile(self.fraction)
            return Threshold(theta * self.margin, theta * self.margin)
        high, low = histogram.quantile(self.fraction), histogram.quantile(1 - self.fraction)
        return Threshold(high * self.margin, -low * self.margin)
