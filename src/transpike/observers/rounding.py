"""Thresholds of few significant bits."""

from __future__ import annotations

import math


def round_up(value: float, bits: int | None) -> float:
    """The float with `bits` significant bits of the smallest magnitude that is not below that of `value`; same sign."""
    if bits is None or value == 0:
        return value
    mantissa, exponent = math.frexp(abs(value))
    return math.copysign(math.ldexp(math.ceil(mantissa * 2**bits) / 2**bits, exponent), value)
