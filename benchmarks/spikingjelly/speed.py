"""Time of one simulation of T steps for both tools, on the same torchvision ViT; prints JSON for models_table.py.

    SPIKINGJELLY_ENVIRONMENT/bin/python speed.py theirs > theirs.json
    python speed.py ours --beside theirs.json > both.json

DeiT-Tiny's shape (or `--shape`) as torchvision's `VisionTransformer`, random weights and images, or with `--data S`
DeiT-Tiny's published weights and images of split.json. Unit: one forward pass of the tool's own source, in its own
environment, on T x batch images, measured in the same round; `T passes` are T of them on one batch. SpikingJelly runs
its transformer recipe as in theirs.py, in multi-step mode; ours is `ecmt`, or `--recipe`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

sys.path.insert(0, str(common.HERE.parent))

from timing import CLOCKS, ratios  # noqa: E402

Runs = dict[str, Callable[[], Any]]


def theirs(source: nn.Module, samples: Tensor, x: Tensor, asked: argparse.Namespace) -> tuple[Runs, dict[str, Any]]:
    import copy

    from theirs import impulse, outputs_of, sta_method

    method = sta_method(asked.steps, "mse", 0.5)
    assert method.feed is impulse
    snn = method.convert(copy.deepcopy(source), samples).eval()
    runs: Runs = {"SpikingJelly 2.0": lambda: outputs_of(snn, method, x, asked.steps)}
    return runs, {"method": method.name, **common.environment("spikingjelly")}


def ours(source: nn.Module, samples: Tensor, x: Tensor, asked: argparse.Namespace) -> tuple[Runs, dict[str, Any]]:
    import transpike

    snn = transpike.convert(source, [samples], asked.recipe)

    def run(**how: Any) -> Callable[[], Any]:
        return lambda: snn.simulate(x, asked.steps, **how)

    runs = {
        "compiled": run(kernel="compiled", count=False),
        "compiled, counting": run(kernel="compiled"),
        "eager": run(kernel="eager", count=False),
        "eager, counting": run(kernel="eager"),
        "bfloat16": run(kernel="compiled", count=False, precision="bfloat16"),
        "streaming": run(mode="streaming", kernel="compiled", count=False),
    }
    return runs, {"method": asked.recipe, **common.environment(), "transpike": transpike.__version__}


def subjects(asked: argparse.Namespace) -> tuple[str, nn.Module, Tensor, Tensor]:
    """(name, source, samples that calibrate, batch)."""
    if asked.data is None:
        x = torch.randn(asked.batch, 3, 224, 224)
        source = common.untrained_vit(asked.blocks, common.WIDTHS[asked.shape])
        return f"torchvision ViT, {asked.shape}'s shape", source, x, x
    split = common.read_split("vit")
    samples, _ = common.read_images(asked.data, "vit", split["calibrate"])
    x, _ = common.read_images(asked.data, "vit", split["evaluate"][: asked.batch])
    return "torchvision ViT, DeiT-Tiny's weights", common.vit(asked.data), samples, x


@torch.no_grad()
def measured(asked: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    load, (model, source, samples, x) = os.getloadavg(), subjects(asked)
    folded = x.repeat(asked.steps, 1, 1, 1)
    runs, environment = {"theirs": theirs, "ours": ours}[asked.tool](source, samples, x, asked)
    functions = {
        "source": lambda: source(folded),
        "T passes": lambda: [source(x) for _ in range(asked.steps)],
        **runs,
    }
    if asked.only:
        functions = {name: run for name, run in functions.items() if name in ("source", *asked.only.split(";"))}
    found = ratios(functions, asked.repeats, CLOCKS[asked.clock])
    about = {"clock": asked.clock, "batch": asked.batch, "depth": asked.blocks, "repeats": asked.repeats}
    about["recipe"] = asked.recipe
    return {
        **about,
        "load_before": load,
        "load_after": os.getloadavg(),
        "environment": environment,
        "cases": [{"model": model, "steps": asked.steps, "threads": asked.threads, **found}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=("theirs", "ours"))
    parser.add_argument("--beside", type=Path, help="the other tool's JSON: then both are printed, as a list")
    parser.add_argument("--shape", choices=common.WIDTHS, default="DeiT-Tiny")
    parser.add_argument("--data", type=Path, help="folder of models and data (docs/results.md): published weights")
    parser.add_argument("--recipe", default="ecmt", help="ours")
    parser.add_argument("--only", default="", help='columns beside "source", with ; between them')
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    other = None if asked.beside is None else json.loads(asked.beside.read_text(encoding="utf-8"))
    found = measured(asked)
    print(json.dumps(found if other is None else [found, {**other, "recipe": asked.recipe}], indent=1))


if __name__ == "__main__":
    main()
