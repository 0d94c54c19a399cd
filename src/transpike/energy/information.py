"""How much a neuron can have said after T steps, and the bit-width of an ANN that says as much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from math import ceil, log2

GRID = 1 << 24  # levels further apart than this are not levels of one neuron


def distinct_values(amplitudes: Sequence[float], steps: int, pulses: int = 1) -> int:
    """The number of distinct values of s(1) + ... + s(T), where each s(t) is 0 or one of the amplitudes.

    Every such sum can occur: the input of a step can drive the neuron to any of its levels. Only the pattern of levels
    counts: each sign is measured in its smallest level, so that a network is not credited with the mixtures that two
    unequal thresholds make possible. One level of one sign: T + 1, as in Yan et al., arXiv 2409.08290. Both signs of
    theta 2^k, k < n, at T = 1: 2n + 1. With several `pulses` a step only sums within the range of the levels count:
    firings after the first refine a value, and its input is in range, so the opponent is not made wider than that. One
    level has nothing finer: there each firing widens the range.
    """
    grid = _grid(amplitudes)
    return _count(tuple(sorted(grid)), steps * pulses, pulses > 1 and max(map(abs, grid), default=1) > 1)


def bits(amplitudes: Sequence[float], steps: int, pulses: int = 1) -> int:
    """ceil(log2(distinct values)), at least 1: the activation width of the ANN that carries the same information.

    Source: the definition of Yan et al., arXiv 2409.08290 (ceil(log2(T + 1)) for one level), for any set of levels.
    """
    return max(1, ceil(log2(distinct_values(amplitudes, steps, pulses))))


def _grid(amplitudes: Sequence[float]) -> set[int]:
    found: set[int] = set()
    for sign in (1, -1):
        levels = [sign * a for a in amplitudes if sign * a > 0]
        smallest = min(levels, default=0.0)
        found.update(sign * min(round(level / smallest), GRID) for level in levels)
    return found


def _count(levels: tuple[int, ...], moves: int, in_range: bool) -> int:
    counts, further = _counts(levels, in_range)
    counts.extend(islice(further, max(moves + 1 - len(counts), 0)))
    return counts[moves]


@lru_cache(maxsize=32)
def _counts(levels: tuple[int, ...], in_range: bool) -> tuple[list[int], Iterator[int]]:
    """Counts after 0, 1, 2, ... moves as far as they were asked for, and what goes on from there."""
    return [1], _within_range(levels) if in_range else _anywhere(levels)


def _anywhere(levels: tuple[int, ...]) -> Iterator[int]:
    """After 1, 2, ... moves; sums as the bits of one integer: bit (value - least) is set for those that are reached."""
    least, reached = min((*levels, 0)), 1
    while True:
        before, reached = reached, reached << -least
        for level in levels:
            reached |= before << (level - least)
        yield reached.bit_count()


def _within_range(levels: tuple[int, ...]) -> Iterator[int]:
    """The same of sums that stay between the lowest and the highest level: bit (value - low)."""
    low, high = min((*levels, 0)), max((*levels, 0))
    reached, whole = 1 << -low, (1 << (high - low + 1)) - 1
    while True:
        before = reached
        for level in levels:
            reached |= (before << level if level > 0 else before >> -level) & whole
        yield reached.bit_count()
