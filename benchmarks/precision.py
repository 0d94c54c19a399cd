"""What lower precision changes: decisions held against float32, on real images; prints one JSON object.

    python benchmarks/precision.py DEIT_TINY.safetensors IMAGES [--recipes ecmt,balanced] [--steps 4] [--device cpu]

Every fifth image calibrates, the others are evaluated. `agreement`: the share of images whose decision after the last
step is that of the same network in float32; `with_source`: that of the source in float32. The first rows are the source
itself in bfloat16: what rounding does to a network without neurons. `float32, input x (1 + 1e-6)` is what the smallest
change of all does to a network with neurons, whose membranes lie on boundaries by chance: no precision can do better.
On a GPU also TF32. `time`: of all evaluated images, without counting, in units of T passes of the source in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timing import clock_of

import transpike
from transpike.data import Preprocess, open_data
from transpike.report.machine import versions
from transpike.zoo import data_config, load_model

NUDGED = "float32, input x (1 + 1e-6)"


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def read(source: torch.nn.Module, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(calibration, evaluation) images."""
    preprocess = Preprocess.from_config({**data_config(source), "crop_pct": 1.0})
    samples = open_data(folder, preprocess=preprocess, labels="none")
    images = torch.stack([samples.fetch(index)[0] for index in range(len(samples))])
    calibrates = torch.arange(len(images)) % 5 == 0
    return images[calibrates], images[~calibrates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("images")
    parser.add_argument("--recipes", default="ecmt,differential,balanced")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--limit", type=int, help="evaluate the first so many only")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device, clock = torch.device(asked.device), clock_of("wall", asked.device)
    source = load_model("timm:deit_tiny_patch16_224", checkpoint=asked.checkpoint)[0].to(device)
    calibration, evaluation = (part.to(device) for part in read(source, asked.images))
    batches = evaluation[: asked.limit].split(asked.batch)

    def timed(run: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, float]:
        run(batches[0])  # compiles
        started = clock()
        decisions = torch.cat([run(batch).argmax(-1) for batch in batches])
        return decisions, clock() - started

    def rounded(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return source(batch).float()

    rows: list[dict[str, Any]] = []

    def row(name: str, precision: str, found: tuple[torch.Tensor, float], exact: torch.Tensor, passes: float) -> None:
        decisions, seconds = found
        shares = [round(100 * float((decisions == other).double().mean()), 2) for other in (exact, truth)]
        named = {"network": name, "precision": precision, "agreement": shares[0], "with_source": shares[1]}
        rows.append({**named, "time": round(seconds / passes, 3)})

    gpu = device.type == "cuda"
    with torch.no_grad():
        truth, seconds = timed(source)
        row("source", "bfloat16", timed(rounded), truth, seconds)
        if gpu:
            with tf32():
                row("source", "tf32", timed(source), truth, seconds)
        for recipe in asked.recipes.split(","):
            snn = transpike.convert(source, calibration.split(asked.batch), recipe)

            def run(precision: str, snn: Any = snn, scale: float = 1.0) -> tuple[torch.Tensor, float]:
                how = {"steps": asked.steps, "count": False, "kernel": "compiled", "precision": precision}
                return timed(lambda batch: snn.simulate(batch * scale, **how).outputs[-1])

            found = run("float32")
            passes = asked.steps * seconds
            row(recipe, "float32", found, found[0], passes)
            row(recipe, NUDGED, run("float32", scale=1 + 1e-6), found[0], passes)
            for precision in ("bfloat16", "bfloat16x3"):
                row(recipe, precision, run(precision), found[0], passes)
            if gpu:
                with tf32():
                    row(recipe, "tf32", run("float32"), found[0], passes)
    about = {"samples": sum(map(len, batches)), "steps": asked.steps, "batch": asked.batch}
    print(json.dumps({**about, "environment": versions(device), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
