"""What benchmarks of whole networks share; needs nothing but Python, so that any environment can import it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clock_of(name: str, device: str) -> Callable[[], float]:
    """A clock; on an accelerator one that reads only when the device has done what it was told."""
    if device == "cpu":
        return CLOCKS[name]
    import torch

    def clock() -> float:
        torch.accelerator.synchronize()
        return CLOCKS[name]()

    return clock


def ratios(
    functions: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float], unit: str = "source"
) -> dict[str, Any]:
    """Seconds of `unit`, one of the functions, and the others in units of it: medians over rounds, in each of which all
    run. The first, unmeasured round compiles."""
    rounds: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        seconds = {}
        for name, function in functions.items():
            started = clock()
            function()
            seconds[name] = clock() - started
        rounds.append(seconds)
    found = {
        name: round(median(taken[name] / taken[unit] for taken in rounds[1:]), 3) for name in functions if name != unit
    }
    return {f"{unit}_seconds": round(median(taken[unit] for taken in rounds[1:]), 6), "ratio": found}
