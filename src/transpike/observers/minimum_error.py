"""Thresholds of minimum mean-square error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..types import Threshold
from .balanced import GRANULARITIES
from .histogram import Histogram


@dataclass(frozen=True)
class MinimumError:
    """One threshold for both signs: that at which the site's neuron, after the recipe's steps on a constant input, has
    the least mean squared error on the calibration histogram.

        theta = argmin E[(M_out(T; theta) - x)^2],   among peak 2^(-j/8)

    It clips outliers where that buys resolution. The search, which runs the neuron, is `calibration.allocate`.
    granularity -- "neuron": then each neuron takes the power of two times that threshold at which its own error is the
    least, for its smallest level; the largest stays the site's. "channel" or "head": the neurons of one together;
    "tensor": none does. shifts -- and then a constant behind each of them, which puts its mean right. See
    `calibration.fine`.
    Source: the range rule of quantisation toolkits and of STA (Jiang et al., ICLR 2024), for any neuron here.
    """

    name: ClassVar[str] = "mse"
    granularity: str = "tensor"
    shifts: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ConfigError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {self.granularity!r}")
        if self.shifts and not self.fine:
            raise ConfigError("shifts are found by neuron, channel or head; name such a granularity")

    @property
    def fine(self) -> bool:
        """Whether the neurons of a site differ."""
        return self.granularity != "tensor"

    def threshold(self, histogram: Histogram) -> Threshold:
        """Where the search begins: the range."""
        return Threshold(histogram.peak, histogram.peak)
