"""What benchmarks of whole networks share; needs nothing but Python, so that any environment can import it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def ratios(functions: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of "source", and of the others in units of it; the first, unmeasured round compiles."""
    rounds: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        seconds = {}
        for name, function in functions.items():
            started = clock()
            function()
            seconds[name] = clock() - started
        rounds.append(seconds)
    found = {
        name: round(median(taken[name] / taken["source"] for taken in rounds[1:]), 3)
        for name in functions
        if name != "source"
    }
    return {"source_seconds": round(median(taken["source"] for taken in rounds[1:]), 4), "ratio": found}
