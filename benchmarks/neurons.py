"""The neuron as one pass over memory, and a whole model against its source; prints one JSON object.

    python benchmarks/neurons.py [--neurons 3000000] [--repeats 9]

`kernel`: time of a neuron over T steps, compiled and eager, as a ratio to copying the tensor of running means it reads
(`copy_ratio` reads and writes what a copy does; with masks it also writes who fired). `model`: a DeiT-Tiny with random
weights, batch 8, T = 4: one time-folded simulation as a ratio to T forward passes of the source, with and without
counting. Medians of runs taken in turns within this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import transpike
from transpike.neurons import NEURONS, Differential, Neuron, compiled_trajectory, trajectory
from transpike.report.machine import versions
from transpike.types import Threshold

THRESHOLD = Threshold(4.0, 4.0)


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each; the first, unmeasured round compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def kernel(neuron: Neuron, steps: int, count: int, repeats: int) -> dict[str, Any]:
    means = torch.randn(steps, count)
    timed = in_turns(
        {
            "copy": means.clone,
            "compiled": lambda: compiled_trajectory(neuron, means, THRESHOLD, masks=False),
            "compiled, masks": lambda: compiled_trajectory(neuron, means, THRESHOLD, masks=True),
        },
        repeats,
    )
    eager = in_turns({"eager, masks": lambda: trajectory(neuron, means, THRESHOLD, masks=True)}, 1)
    ratios = {name: round(value / timed["copy"], 2) for name, value in {**timed, **eager}.items() if name != "copy"}
    return {"neuron": str(neuron), "steps": steps, "copy_seconds": round(timed["copy"], 5), "copy_ratio": ratios}


def model(recipe: str, repeats: int, *, steps: int = 4, batch: int = 8) -> dict[str, Any]:
    import timm

    torch.manual_seed(0)
    source = timm.create_model("deit_tiny_patch16_224", num_classes=1000).eval()
    images = torch.randn(batch, 3, 224, 224)
    snn = transpike.convert(source, [images], recipe)
    folded = images.repeat(steps, 1, 1, 1)
    with torch.no_grad():
        timed = in_turns(
            {
                "source": lambda: source(folded),
                "compiled": lambda: snn.simulate(images, steps, kernel="compiled", count=False),
                "compiled, counting": lambda: snn.simulate(images, steps, kernel="compiled"),
                "eager, counting": lambda: snn.simulate(images, steps, kernel="eager"),
            },
            repeats,
        )
    ratios = {name: round(value / timed["source"], 2) for name, value in timed.items() if name != "source"}
    return {"model": "deit_tiny_patch16_224", "recipe": recipe, "steps": steps, "batch": batch, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=3_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    cases = [(kind(), steps) for kind in (NEURONS["multi-threshold"], NEURONS["differential"]) for steps in (1, 4, 16)]
    cases.append((Differential(8, 0.75, pulses=6), 1))
    found = {
        "kernel": [kernel(neuron, steps, asked.neurons, asked.repeats) for neuron, steps in cases],
        "model": [model(recipe, max(asked.repeats // 3, 3)) for recipe in ("ecmt", "balanced")],
        "environment": versions(torch.device("cpu")),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
