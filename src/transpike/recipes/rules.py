"""Range rules by the words that recipes take."""

from __future__ import annotations

from ..errors import ConfigError
from ..observers import MinimumError, Percentile, RangeRule


def range_rule(name: str, percentile: float, symmetric: bool) -> RangeRule:
    """ "percentile", or "mse" (one threshold for both signs of least squared error)."""
    if name not in ("percentile", "mse"):
        raise ConfigError(f"rule must be percentile or mse, not {name!r}")
    return Percentile(percentile, symmetric) if name == "percentile" else MinimumError()
