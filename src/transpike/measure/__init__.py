"""What happened: spikes and operations (counted as the network runs), accuracy and agreement after every step."""

from .agreement import Agreement, interval
from .operations import dense_operations, fan_out, per_step, product_operations
from .tally import Tally

__all__ = ["Agreement", "Tally", "dense_operations", "fan_out", "interval", "per_step", "product_operations"]
