"""Range setting: what calibration keeps of a site's activations, and which thresholds it makes of them, one file each.

A rule is a frozen, serialisable value with `threshold(histogram) -> Threshold`. To add one, add its file and its row.
`Balanced` decides for all sites together, which is `_allocate`'s work; alone it gives the range.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from ..types import Threshold
from .balanced import Balanced
from .histogram import Histogram
from .maximum import Maximum
from .percentile import Percentile


@runtime_checkable
class RangeRule(Protocol):
    name: ClassVar[str]

    def threshold(self, histogram: Histogram) -> Threshold: ...


RANGE_RULES: dict[str, type[RangeRule]] = {"percentile": Percentile, "maximum": Maximum, "balanced": Balanced}

__all__ = ["RANGE_RULES", "Balanced", "Histogram", "Maximum", "Percentile", "RangeRule"]
