"""Whole networks against T forward passes of their source, in one run; prints one JSON object.

    python benchmarks/models.py [--repeats 3] [--threads 1,2] [--models deit_tiny_patch16_224,...] [--steps 1,2,4,8]
    python benchmarks/models.py --device cuda --batch 64 --threads 1

Vision Transformers of timm with random weights, recipe `ecmt` (`--recipe`). `ratio`: the median over rounds of (time /
time of one source forward pass in float32 on T x batch images, measured in the same round); `source, bfloat16` is that
pass under autocast. Also a step-by-step re-implementation of the paper (step_by_step.py), whose outputs are held
against ours first. `clock`: "wall", or "cpu", the processor time of this process, which says more where other work
shares the machine (then with one thread).
Set MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592, or the C library gives large blocks back to the
system after every operator, and takes them again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from step_by_step import step_by_step
from timing import CLOCKS, clock_of, ratios

import transpike
from transpike.report.machine import versions


def network(
    name: str, depth: int | None, batch: int = 8, device: str = "cpu", recipe: str = "ecmt"
) -> tuple[Any, transpike.SpikingModel, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    with torch.device(device):
        source = timm.create_model(name, **({} if depth is None else {"depth": depth})).eval()
    images = torch.randn(batch, *source.default_cfg["input_size"], device=device)
    return source, transpike.convert(source, [images[:4]], recipe), images


def same(source: Any, snn: transpike.SpikingModel, images: torch.Tensor) -> float:
    """Largest difference between the step-by-step network and ours over two steps, in units of the largest output."""
    ours = snn.simulate(images[:1], 2, count=False, kernel="eager").outputs
    theirs = step_by_step(source, images[:1], levels(snn), 2)
    return float((ours - theirs).abs().max() / ours.abs().max())


def levels(snn: transpike.SpikingModel) -> dict[str, tuple[float, float]]:
    return {name: (threshold.positive, threshold.negative) for name, threshold in snn.thresholds.items()}


@torch.no_grad()
def case(
    parts: Any, steps: int, repeats: int, clock: Callable[[], float], *, literal: bool, only: str
) -> dict[str, Any]:
    source, snn, images = parts
    folded = images.repeat(steps, 1, 1, 1)

    def source_bfloat16() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            source(folded)

    functions: dict[str, Callable[[], Any]] = {
        "source": lambda: source(folded),
        "source, bfloat16": source_bfloat16,
        "compiled": lambda: snn.simulate(images, steps, kernel="compiled", count=False),
        "compiled, counting": lambda: snn.simulate(images, steps, kernel="compiled"),
        "eager": lambda: snn.simulate(images, steps, kernel="eager", count=False),
        "eager, counting": lambda: snn.simulate(images, steps, kernel="eager"),
        "bfloat16": lambda: snn.simulate(images, steps, kernel="compiled", count=False, precision="bfloat16"),
        "bfloat16x3": lambda: snn.simulate(images, steps, kernel="compiled", count=False, precision="bfloat16x3"),
        "folded": lambda: snn.simulate(images, steps, mode="folded", kernel="compiled", count=False),
        "streaming": lambda: snn.simulate(images, steps, mode="streaming", kernel="compiled", count=False),
    }
    said = snn.simulate(images[:2], steps, kernel="compiled", count=False).kernel
    if literal:
        thresholds = levels(snn)
        functions["step by step"] = lambda: step_by_step(source, images, thresholds, steps)
    if only:
        functions = {name: run for name, run in functions.items() if name in ("source", *only.split(";"))}
    return {"steps": steps, "threads": torch.get_num_threads(), "kernel": said, **ratios(functions, repeats, clock)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--steps", default="1,2,4,8")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--models", default="deit_tiny_patch16_224,vit_small_patch16_224,vit_base_patch16_224")
    parser.add_argument("--depth", type=int, help="blocks, fewer than the model has: ratios change little, time does")
    parser.add_argument(
        "--literal-steps", default="4", help="numbers of steps at which the step-by-step network runs too; 0 for none"
    )
    parser.add_argument("--recipe", default="ecmt", help="the step-by-step network is of ecmt: --literal-steps 0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help='columns beside "source", with ; between them')
    asked = parser.parse_args()
    literal = set(map(int, asked.literal_steps.split(","))) - {0}
    clock = clock_of(asked.clock, asked.device)
    load, found = os.getloadavg(), []
    for name in asked.models.split(","):
        parts = network(name, asked.depth, asked.batch, asked.device, asked.recipe)
        difference = same(*parts) if literal else None
        for threads in map(int, asked.threads.split(",")):
            torch.set_num_threads(threads)
            for steps in map(int, asked.steps.split(",")):
                row = case(parts, steps, asked.repeats, clock, literal=steps in literal, only=asked.only)
                found.append({"model": name, "step_by_step_difference": difference, **row})
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    keys = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    about = {
        "clock": asked.clock,
        "load_before": load,
        "load_after": os.getloadavg(),
        "batch": asked.batch,
        "recipe": asked.recipe,
        "depth": asked.depth,
    }
    about["environment"] = {**versions(torch.device(asked.device)), **{key: os.environ.get(key) for key in keys}}
    print(json.dumps({**about, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
