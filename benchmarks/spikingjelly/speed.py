"""Time of one simulation of T steps for both tools, on the same torchvision ViT; prints JSON for models_table.py.

    SPIKINGJELLY_ENVIRONMENT/bin/python speed.py theirs > theirs.json
    python speed.py ours --beside theirs.json > both.json

DeiT-Tiny's shape (or `--shape`) as torchvision's `VisionTransformer`, random weights. Unit: one forward pass of the
tool's own source, in its own environment, on T x batch images, measured in the same round; `T passes` are T of them on
one batch. SpikingJelly runs its transformer recipe as in theirs.py, in multi-step mode; ours is `ecmt`.
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


def theirs(source: nn.Module, x: Tensor, steps: int) -> tuple[Runs, dict[str, Any]]:
    import copy

    from theirs import impulse, outputs_of, sta_method

    method = sta_method(steps, "mse", 0.5)
    assert method.feed is impulse
    snn = method.convert(copy.deepcopy(source), x).eval()
    runs: Runs = {"SpikingJelly 2.0": lambda: outputs_of(snn, method, x, steps)}
    return runs, {"method": method.name, **common.environment("spikingjelly")}


def ours(source: nn.Module, x: Tensor, steps: int) -> tuple[Runs, dict[str, Any]]:
    import transpike

    snn = transpike.convert(source, [x], "ecmt")

    def run(**how: Any) -> Callable[[], Any]:
        return lambda: snn.simulate(x, steps, **how)

    runs = {
        "compiled": run(kernel="compiled", count=False),
        "compiled, counting": run(kernel="compiled"),
        "eager": run(kernel="eager", count=False),
        "eager, counting": run(kernel="eager"),
        "bfloat16": run(kernel="compiled", count=False, precision="bfloat16"),
        "streaming": run(mode="streaming", kernel="compiled", count=False),
    }
    return runs, {"method": "ecmt", **common.environment(), "transpike": transpike.__version__}


@torch.no_grad()
def measured(asked: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    source = common.untrained_vit(asked.blocks, common.WIDTHS[asked.shape])
    load, x = os.getloadavg(), torch.randn(asked.batch, 3, 224, 224)
    folded = x.repeat(asked.steps, 1, 1, 1)
    runs, environment = {"theirs": theirs, "ours": ours}[asked.tool](source, x, asked.steps)
    functions = {
        "source": lambda: source(folded),
        "T passes": lambda: [source(x) for _ in range(asked.steps)],
        **runs,
    }
    found = ratios(functions, asked.repeats, CLOCKS[asked.clock])
    about = {"clock": asked.clock, "batch": asked.batch, "depth": asked.blocks, "repeats": asked.repeats}
    return {
        **about,
        "load_before": load,
        "load_after": os.getloadavg(),
        "environment": environment,
        "cases": [
            {
                "model": f"torchvision ViT, {asked.shape}'s shape",
                "steps": asked.steps,
                "threads": asked.threads,
                **found,
            }
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=("theirs", "ours"))
    parser.add_argument("--beside", type=Path, help="the other tool's JSON: then both are printed, as a list")
    parser.add_argument("--shape", choices=common.WIDTHS, default="DeiT-Tiny")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    other = None if asked.beside is None else json.loads(asked.beside.read_text(encoding="utf-8"))
    found = measured(asked)
    print(json.dumps(found if other is None else [found, other], indent=1))


if __name__ == "__main__":
    main()
