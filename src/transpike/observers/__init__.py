"""Range setting: what calibration keeps of a site's activations, and which thresholds it makes of them, one file each.

A rule is a frozen, serialisable value with `threshold(histogram) -> Threshold`. To add one, add its file and its row.
`Balanced`, which decides for all sites together, and `MinimumError` run the neuron, and `FixedPoint` needs its levels:
that is `calibration.allocate`'s work.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from ..types import Threshold
from .balanced import Balanced
from .fixed_point import FixedPoint
from .grouped import Grouped
from .histogram import Histogram
from .largest import Largest
from .maximum import Maximum
from .minimum_error import MinimumError
from .percentile import Percentile


@runtime_checkable
class RangeRule(Protocol):
    name: ClassVar[str]

    def threshold(self, histogram: Histogram) -> Threshold: ...


RANGE_RULES: dict[str, type[RangeRule]] = {
    "percentile": Percentile,
    "maximum": Maximum,
    "balanced": Balanced,
    "mse": MinimumError,
    "fixed-point": FixedPoint,
}

__all__ = [
    "RANGE_RULES",
    "Balanced",
    "FixedPoint",
    "Grouped",
    "Histogram",
    "Largest",
    "Maximum",
    "MinimumError",
    "Percentile",
    "RangeRule",
]
