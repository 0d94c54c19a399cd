"""What happened: spikes and operations (counted as the network runs), accuracy and agreement after every step."""

from .agreement import Agreement, interval
from .operations import (
    counts_apart,
    dense_operations,
    fan_out,
    paired,
    per_step,
    product_counts,
    product_operations,
)
from .stopping import margins, stopping_steps, stopping_threshold
from .tally import Tally

__all__ = [
    "Agreement",
    "Tally",
    "counts_apart",
    "dense_operations",
    "fan_out",
    "interval",
    "margins",
    "paired",
    "per_step",
    "product_counts",
    "product_operations",
    "stopping_steps",
    "stopping_threshold",
]
