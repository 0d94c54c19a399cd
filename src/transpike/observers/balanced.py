"""Thresholds that spend a budget of error where it saves the most spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..types import Threshold
from .histogram import Histogram

GRANULARITIES = ("tensor", "head", "channel", "neuron")


@dataclass(frozen=True)
class Balanced:
    """All sites together: as few operations as possible at a given error, or as little error for given operations.

        minimise   sum_i  I_i D_i(theta_i) / 2  +  lambda sum_i  c_i N_i K_i(theta_i)

    D is the mean squared error and K the mean number of spikes of site i's neuron on its calibration histogram, I the
    Fisher information of the prediction about the site, c N the operations of one spike of each neuron. lambda is set
    so that the KL divergence from the source's prediction in nats, of which the first sum is an estimate, is
    `divergence` on the calibration samples (within 15 %: the network runs with its neurons a few times, to see); or,
    where `energy` is given, so that the second costs that share of the source (the paper's account, 0.9 to 4.6 pJ,
    without the products of two spiking signals). Each site also gets as many levels as its range needs.
    granularity -- "neuron": a site's thresholds also differ, by powers of two, between its channels, heads and
    positions, by what each has of the information, so that noise of every neuron costs the same; "channel" and "head":
    between those only; "tensor": one threshold for all neurons of a site.
    Both are estimates of first order: noise is small and independent.
    Source: ours; reverse water-filling of rate-distortion theory with spikes for rate.
    """

    name: ClassVar[str] = "balanced"
    divergence: float = 0.0005
    energy: float | None = None
    granularity: str = "neuron"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ConfigError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {self.granularity!r}")
        for name in ("divergence", "energy"):
            value = getattr(self, name)
            if value is None and name == "energy":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number, not {value!r}")

    def threshold(self, histogram: Histogram) -> Threshold:
        """The range alone, for a site on which the prediction does not depend."""
        return Threshold(histogram.peak, histogram.peak)
