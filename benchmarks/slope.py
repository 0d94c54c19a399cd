"""What one more step costs, in forward passes of the source; prints one JSON object.

    python benchmarks/slope.py [--model deit_tiny_patch16_224] [--depth N] [--steps 2,4,8,16,32] [--max-memory 500MB]

Random weights, recipe `ecmt`, compiled neurons, no counting. Time of T steps / time of one forward pass on the same
batch, the median over rounds, is fitted by `intercept + slope T` (least squares): `slope` is forward passes a step.
Folded runs are divided into parts that fit `--max-memory`, so that large T can fold; `mode` says how.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from models import network
from timing import CLOCKS, ratios

from transpike._memory import parse_size
from transpike.report.machine import versions


def fitted(ratio: dict[int, float]) -> dict[str, float]:
    """Least squares of ratio = intercept + slope T, and the largest distance of a point from the line."""
    steps, times = np.array(list(ratio)), np.array(list(ratio.values()))
    slope, intercept = np.polyfit(steps, times, 1)
    off = float(np.abs(times - intercept - slope * steps).max())
    return {"slope": round(float(slope), 4), "intercept": round(float(intercept), 4), "largest_residual": round(off, 4)}


@torch.no_grad()
def measured(parts: Any, asked: argparse.Namespace, mode: str) -> dict[str, Any]:
    source, snn, images = parts
    images = images[: asked.batch]
    steps = [int(t) for t in asked.steps.split(",")]
    how = {"mode": mode, "count": False, "max_memory": parse_size(asked.max_memory), "kernel": "compiled"}
    ran: dict[int, str] = {}

    def simulation(t: int) -> Callable[[], None]:
        def run() -> None:
            done = snn.simulate(images, t, **how)
            ran[t] = f"{done.mode}; {done.kernel}"

        return run

    functions: dict[str, Callable[[], Any]] = {"source": lambda: source(images)}
    functions |= {str(t): simulation(t) for t in steps}
    found = ratios(functions, asked.repeats, CLOCKS[asked.clock])
    ratio = {t: found["ratio"][str(t)] for t in steps}
    return {
        "mode": mode,
        **fitted(ratio),
        "source_seconds": found["source_seconds"],
        "passes": ratio,
        "passes_a_step": {t: round(value / t, 4) for t, value in ratio.items()},
        "ran": ran,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--depth", type=int, help="blocks, fewer than the model has")
    parser.add_argument("--steps", default="2,4,8,16,32")
    parser.add_argument("--batch", type=int, default=8, help="images, at most 8")
    parser.add_argument("--modes", default="folded,streaming")
    parser.add_argument("--max-memory", default="500MB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load, parts = os.getloadavg(), network(asked.model, asked.depth)
    found = [measured(parts, asked, mode) for mode in asked.modes.split(",")]
    about = {**vars(asked), "recipe": "ecmt", "load_before": load, "load_after": os.getloadavg()}
    print(json.dumps({**about, "environment": versions(torch.device("cpu")), "fits": found}, indent=1))


if __name__ == "__main__":
    main()
