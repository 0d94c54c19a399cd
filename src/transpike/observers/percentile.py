"""Thresholds at a percentile of the activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..types import Threshold
from .histogram import Histogram

GRANULARITIES = ("tensor", "head", "channel")


@dataclass(frozen=True)
class Percentile:
    """The `fraction`-quantile as base amplitude.

    Arguments: fraction -- in (0, 1]; 1 is the maximum. symmetric -- True: one threshold for both signs, the quantile
    of |x|; False: one per sign, Q(fraction) of x and -Q(1 - fraction) of x, as ECMT does. margin -- a factor on both.
    granularity -- "channel" or "head": a channel's (head's) threshold is that of its own values, rounded up to a power
    of two times the site's, which is the largest of them. From there its levels go as far down as the recipe says, and
    they reach up to the site's largest all the same: other samples hold more in a channel than calibration has seen.
    All levels stay on one ladder: the scales fold into it for free. It takes a second pass over the calibration
    samples, which are kept. "tensor": one threshold for all neurons of a site.
    """

    name: ClassVar[str] = "percentile"
    fraction: float = 0.9999
    symmetric: bool = False
    margin: float = 1.0
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, (int, float)) or not 0 < self.fraction <= 1:
            raise ConfigError(f"percentile must be in (0, 1], not {self.fraction!r} (0.99 means 99 %)")
        if not isinstance(self.margin, (int, float)) or not 0 < self.margin < float("inf"):
            raise ConfigError(f"margin must be a positive number, not {self.margin!r}")

        if self.granularity not in GRANULARITIES:
            raise ConfigError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {self.granularity!r}")

    def ranks(self, count: int) -> tuple[int, int | None]:
        """Which of `count` values are the thresholds: the how many-th largest, and smallest (None: of |x|, largest)."""
        high = count - max(1, math.ceil(self.fraction * count)) + 1 if self.fraction < 1 else 1
        return high, None if self.symmetric else max(1, math.ceil((1 - self.fraction) * count))

    def threshold(self, histogram: Histogram) -> Threshold:
        if self.symmetric:
            theta = histogram.magnitude_quantile(self.fraction)
            return Threshold(theta * self.margin, theta * self.margin)
        high, low = histogram.quantile(self.fraction), histogram.quantile(1 - self.fraction)
        return Threshold(high * self.margin, -low * self.margin)
