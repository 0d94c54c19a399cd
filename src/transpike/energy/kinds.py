"""What an account counts: kinds of operation, and counts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """One priced thing. The last four are moved data: words (a width makes them bits), and bits of events."""

    ACCUMULATE = "accumulate"  # one spike through one synapse
    SHIFT = "shift"  # its weight times the power of two that the spike is worth
    MULTIPLY_ACCUMULATE = "multiply_accumulate"  # dense layers, and what stays of them
    INTEGRATE = "integrate"  # into a membrane or a product's sum of spikes, and the reset
    COMPARE = "compare"
    ADD = "add"  # elementwise, as are all that follow
    MULTIPLY = "multiply"
    DIVISION = "division"
    SQUARE_ROOT = "square_root"
    EXPONENTIAL = "exponential"  # or log, sin, cos
    ERROR_FUNCTION = "error_function"
    WEIGHT_WORDS = "weight_words"  # read
    STATE_WORDS = "state_words"  # read or written
    ACTIVATION_WORDS = "activation_words"  # read or written
    EVENT_BITS = "event_bits"  # sent


MEMORY = (Kind.WEIGHT_WORDS, Kind.STATE_WORDS, Kind.ACTIVATION_WORDS, Kind.EVENT_BITS)
COMPUTE = tuple(kind for kind in Kind if kind not in MEMORY)
Counts = dict[Kind, Any]  # numbers, or arrays by step


def added(parts: Iterable[Mapping[Kind, Any]]) -> Counts:
    """The sum of several counts."""
    total: Counts = {}
    for part in parts:
        for kind, count in part.items():
            total[kind] = total[kind] + count if kind in total else count
    return total


def times(counts: Mapping[Kind, Any], factor: Any) -> Counts:
    """Every count times a number, or times one number per step."""
    return {kind: count * factor for kind, count in counts.items()}
