"""Range rules by the words that recipes take."""

from __future__ import annotations

from ..errors import ConfigError
from ..observers import FixedPoint, MinimumError, Percentile, RangeRule

RULES = ("percentile", "mse", "fixed-point")


def range_rule(name: str, percentile: float, symmetric: bool, granularity: str = "tensor") -> RangeRule:
    """ "percentile"; "mse" (one threshold for both signs of least squared error); or "fixed-point" (of least squared
    error of a uniform quantiser). Thresholds by channel or head are the percentile's."""
    if name not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}, not {name!r}")
    rule = Percentile(percentile, symmetric, granularity=granularity)
    if name == "percentile":
        return rule
    if granularity != "tensor":
        raise ConfigError(f"granularity {granularity!r} needs rule percentile, not {name!r}")
    return FixedPoint(symmetric) if name == "fixed-point" else MinimumError()
