"""Thresholds of minimum mean-square error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..types import Threshold
from .histogram import Histogram


@dataclass(frozen=True)
class MinimumError:
    """One threshold for both signs: that at which the site's neuron, after the recipe's steps on a constant input, has
    the least mean squared error on the calibration histogram.

        theta = argmin E[(M_out(T; theta) - x)^2],   among peak 2^(-j/8)

    It clips outliers where that buys resolution. The search is `_allocate.least_error`, which runs the neuron itself.
    Source: the range rule of quantisation toolkits and of STA (Jiang et al., ICLR 2024), for any neuron here.
    """

    name: ClassVar[str] = "mse"

    def threshold(self, histogram: Histogram) -> Threshold:
        """Where the search begins: the range."""
        return Threshold(histogram.peak, histogram.peak)
