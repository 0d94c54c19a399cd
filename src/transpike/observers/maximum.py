"""Thresholds at the largest activation seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..types import Threshold
from .histogram import Histogram


@dataclass(frozen=True)
class Maximum:
    """The largest activation of each sign times `margin`, or of both when symmetric."""

    name: ClassVar[str] = "maximum"
    margin: float = 1.0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.margin < float("inf"):
            raise ConfigError(f"margin must be a positive number, not {self.margin!r}")

    def threshold(self, histogram: Histogram) -> Threshold:
        positive, negative = max(histogram.maximum, 0.0), max(-histogram.minimum, 0.0)
        if self.symmetric:
            positive = negative = max(positive, negative)
        return Threshold(positive * self.margin, negative * self.margin)
