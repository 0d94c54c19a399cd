"""How nonlinear operators are approximated, as a value of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite, log2
from typing import Any

from ..errors import ConfigError

NARROWEST = 2.0**-4  # a calibrated range is never taken for less


@dataclass(frozen=True)
class Approximation:
    """Nonlinear operators by N bases over a window of T decays.

    Arguments: bases -- N of each function; two banks share them. window -- T. ranges -- by node, the inputs (low, high)
    that element-wise operators were calibrated for; calibration fills them in.
    """

    bases: int = 8
    window: int = 16
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, most in (("bases", self.bases, 32), ("window", self.window, 24)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if self.bases % 2:
            raise ConfigError(f"bases must be even, because two banks share them, not {self.bases}")
        for node, pair in self.ranges.items():
            if not all(isfinite(bound) for bound in pair) or len(pair) != 2 or pair[0] > pair[1]:
                raise ConfigError(f"the range of operator {node} must be two ordered finite numbers, not {pair!r}")

    def domain(self, node: str) -> tuple[float, float]:
        """What an element-wise operator is fitted on: both ends of its range rounded up to powers of two, so that
        values a little beyond those of calibration are in it, and operators of similar ranges share a fit."""
        if node not in self.ranges:
            raise ConfigError(f"no range is known for operator {node}; calibrate the recipe on samples")
        low, high = self.ranges[node]
        return -_power(-low), _power(high)

    def line(self) -> str:
        return f"nonlinear operators by {self.bases} decaying bases over a window of {self.window}"

    def to_json(self) -> dict[str, Any]:
        ranges = {node: list(pair) for node, pair in self.ranges.items()}
        return {"bases": self.bases, "window": self.window, "ranges": ranges}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Approximation:
        ranges = {str(node): (float(low), float(high)) for node, (low, high) in data.get("ranges", {}).items()}
        return Approximation(data["bases"], data["window"], ranges)


def _power(bound: float) -> float:
    return 2.0 ** ceil(log2(max(bound, NARROWEST)))
