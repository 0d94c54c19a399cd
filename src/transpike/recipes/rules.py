"""Range rules by the words that recipes take."""

from __future__ import annotations

from ..errors import ConfigError
from ..observers import FixedPoint, MinimumError, Percentile, RangeRule

RULES = ("percentile", "maximum", "mse", "fixed-point")


def range_rule(name: str, percentile: float, symmetric: bool, granularity: str = "tensor") -> RangeRule:
    """ "percentile"; "maximum" (its 100 %); "mse" (one threshold for both signs of least squared error); or
    "fixed-point" (of least squared error of a uniform quantiser), which has one threshold per tensor only."""
    if name not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}, not {name!r}")
    if name == "mse":
        return MinimumError(granularity)
    if name == "fixed-point":
        if granularity != "tensor":
            raise ConfigError(f"granularity {granularity!r} needs rule percentile, maximum or mse, not {name!r}")
        return FixedPoint(symmetric)
    return Percentile(1.0 if name == "maximum" else percentile, symmetric, granularity=granularity)
