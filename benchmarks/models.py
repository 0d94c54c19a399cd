"""Whole networks against T forward passes of their source, in one run; prints one JSON object.

    python benchmarks/models.py [--repeats 3] [--threads 1,2] [--models deit_tiny_patch16_224,...] [--steps 1,2,4,8]

Vision Transformers of timm with random weights, batch 8, recipe `ecmt`. `ratio`: the median over rounds of (time / time
of one source forward pass on T x batch images, measured in the same round). Also a step-by-step re-implementation of
the paper (step_by_step.py), whose outputs are held against ours first. `clock`: "wall", or "cpu", the processor time of
this process, which says more where other work shares the machine (then with one thread).
Set MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592, or the C library gives large blocks back to the
system after every operator, and takes them again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from step_by_step import step_by_step
from timing import CLOCKS, ratios

import transpike
from transpike.report.machine import versions


def network(name: str, depth: int | None) -> tuple[Any, transpike.SpikingModel, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    source = timm.create_model(name, **({} if depth is None else {"depth": depth})).eval()
    images = torch.randn(8, 3, 224, 224)
    return source, transpike.convert(source, [images[:4]], "ecmt"), images


def same(source: Any, snn: transpike.SpikingModel, images: torch.Tensor) -> float:
    """Largest difference between the step-by-step network and ours over two steps, in units of the largest output."""
    ours = snn.simulate(images[:1], 2, count=False, kernel="eager").outputs
    theirs = step_by_step(source, images[:1], levels(snn), 2)
    return float((ours - theirs).abs().max() / ours.abs().max())


def levels(snn: transpike.SpikingModel) -> dict[str, tuple[float, float]]:
    return {name: (threshold.positive, threshold.negative) for name, threshold in snn.thresholds.items()}


@torch.no_grad()
def case(parts: Any, steps: int, repeats: int, clock: str, *, literal: bool) -> dict[str, Any]:
    source, snn, images = parts
    folded = images.repeat(steps, 1, 1, 1)
    functions: dict[str, Callable[[], Any]] = {
        "source": lambda: source(folded),
        "compiled": lambda: snn.simulate(images, steps, kernel="compiled", count=False),
        "compiled, counting": lambda: snn.simulate(images, steps, kernel="compiled"),
        "eager": lambda: snn.simulate(images, steps, kernel="eager", count=False),
        "eager, counting": lambda: snn.simulate(images, steps, kernel="eager"),
        "bfloat16": lambda: snn.simulate(images, steps, kernel="compiled", count=False, precision="bfloat16"),
        "streaming": lambda: snn.simulate(images, steps, mode="streaming", count=False),
    }
    if literal:
        thresholds = levels(snn)
        functions["step by step"] = lambda: step_by_step(source, images, thresholds, steps)
    return {"steps": steps, "threads": torch.get_num_threads(), **ratios(functions, repeats, CLOCKS[clock])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--steps", default="1,2,4,8")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--models", default="deit_tiny_patch16_224,vit_small_patch16_224,vit_base_patch16_224")
    parser.add_argument("--depth", type=int, help="blocks, fewer than the model has: ratios change little, time does")
    parser.add_argument(
        "--literal-steps", default="4", help="numbers of steps at which the step-by-step network runs too"
    )
    asked = parser.parse_args()
    load, found = os.getloadavg(), []
    for name in asked.models.split(","):
        parts = network(name, asked.depth)
        difference = same(*parts)
        for threads in map(int, asked.threads.split(",")):
            torch.set_num_threads(threads)
            for steps in map(int, asked.steps.split(",")):
                literal = str(steps) in asked.literal_steps.split(",")
                row = case(parts, steps, asked.repeats, asked.clock, literal=literal)
                found.append({"model": name, "step_by_step_difference": difference, **row})
    keys = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    about = {
        "clock": asked.clock,
        "load_before": load,
        "load_after": os.getloadavg(),
        "batch": 8,
        "recipe": "ecmt",
        "depth": asked.depth,
    }
    about["environment"] = {**versions(torch.device("cpu")), **{key: os.environ.get(key) for key in keys}}
    print(json.dumps({**about, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
