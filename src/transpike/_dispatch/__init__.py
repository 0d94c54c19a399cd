"""Weights on several devices, on the CPU or on disk, by the conventions of accelerate: where every operator runs, and
the graph that fetches weights and moves values."""

from .device_map import AUTOMATIC, MaxMemory, asked, chosen_map
from .dispatch import Dispatched, dispatched, gather, weights
from .placing import DISK, DeviceMap, spread

__all__ = [
    "AUTOMATIC",
    "DISK",
    "DeviceMap",
    "Dispatched",
    "MaxMemory",
    "asked",
    "chosen_map",
    "dispatched",
    "gather",
    "spread",
    "weights",
]
