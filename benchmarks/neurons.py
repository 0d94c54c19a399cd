"""The neuron as one pass over memory; prints one JSON object.

    python benchmarks/neurons.py [--elements 24000000] [--steps 1,4,16,32] [--repeats 9] [--device cpu]

Time of a neuron over T steps, compiled and eager, as a ratio to copying the tensor of running means it reads, which
holds `--elements` numbers at every T (elements / T neurons). `compiled` reads and writes what a copy does; with masks
it also writes who fired and whose membrane is not empty. `spikes`: it writes what is emitted, in bfloat16, as for
linear layers that are computed from spikes. `copy_bytes_per_second` counts bytes read and written.
Medians of runs taken in turns within this process. Whole models: models.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from timing import clock_of, ratios

from transpike.neurons import NEURONS, Differential, Neuron, compiled_trajectory, one_number, trajectory
from transpike.report.machine import versions
from transpike.types import Threshold

EAGER = 400_000_000  # elements from which intermediates of the eager neuron may not fit
THRESHOLDS = {"one threshold": Threshold(4.0, 4.0), "two thresholds": Threshold(4.0, 3.0)}


def kernel(neuron: Neuron, threshold: Threshold, steps: int, asked: argparse.Namespace) -> dict[str, Any]:
    means = torch.randn(steps, asked.elements // steps, device=asked.device)
    functions: dict[str, Callable[[], Any]] = {
        "copy": means.clone,
        "compiled": lambda: compiled_trajectory(neuron, means, threshold, masks=False),
        "compiled, masks": lambda: compiled_trajectory(neuron, means, threshold, masks=True),
    }
    if one_number(neuron, threshold):
        functions["compiled, spikes"] = lambda: compiled_trajectory(neuron, means, threshold, masks=False, emitted=True)
    clock = clock_of("wall", asked.device)
    found = ratios(functions, asked.repeats, clock, unit="copy")
    slow = {"copy": means.clone, "eager, masks": lambda: trajectory(neuron, means, threshold, masks=True)}
    if means.numel() <= EAGER:
        found["ratio"] |= ratios(slow, 1, clock, unit="copy")["ratio"]
    moved = 2 * means.numel() * means.element_size()
    return {"neuron": str(neuron), "steps": steps, "copy_bytes_per_second": moved / found["copy_seconds"], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=24_000_000)
    parser.add_argument("--steps", default="1,4,16,32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    one, two = THRESHOLDS.items()
    kinds = NEURONS["multi-threshold"](), NEURONS["differential"]()
    cases = [(kind, steps, one) for kind in kinds for steps in map(int, asked.steps.split(","))]
    cases += [(kinds[0], 4, two), (Differential(8, 0.75, pulses=6), 1, one)]
    found = []
    for neuron, steps, (name, threshold) in cases:
        found.append({"thresholds": name, **kernel(neuron, threshold, steps, asked)})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)  # minutes pass between them where much is compiled
    print(json.dumps({"kernel": found, "environment": versions(torch.device(asked.device))}, indent=1))


if __name__ == "__main__":
    main()
