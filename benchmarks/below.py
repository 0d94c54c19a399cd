"""What could make T steps cost less than T passes: silent inputs, and low-precision products; prints one JSON object.

    python benchmarks/below.py [--checkpoint FILE --images FOLDER]

`products`: time of a layer of DeiT-Tiny and of ViT-B (T = 4, 8 x 197 rows each) in float32, bfloat16 and int8
(torch._int_mm), and in bfloat16 parts, from spikes and from means, where the processor has units for them. `silent`:
over the sites that linear layers read, by step, the share of neurons that emit nothing and of rows (tokens) in which no
neuron emits; a linear layer of a sum code could skip those rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import transpike
from transpike._execute import run_body, run_prefix
from transpike.neurons import advance
from transpike.products import linear_of_means, linear_of_spikes, refusal
from transpike.report.machine import versions


def seconds(function: Callable[[], Any], repeats: int = 7) -> float:
    taken = []
    for _ in range(repeats + 1):
        started = time.process_time()
        function()
        taken.append(time.process_time() - started)
    return median(taken[1:])


def products(rows: int, inner: int, outer: int) -> dict[str, Any]:
    left, right = torch.randn(rows, inner), torch.randn(inner, outer)
    forms: dict[str, Callable[[], Any]] = {"float32": lambda: left @ right}
    half = (left.bfloat16(), right.bfloat16())
    forms["bfloat16"] = lambda: half[0] @ half[1]
    forms["bfloat16, weights in two parts"] = lambda: (half[0] @ half[1], half[0] @ half[1])
    if not (reason := refusal(torch.device("cpu"))):
        spikes, weight = torch.randn(rows, inner).sign().bfloat16(), right.t().contiguous()
        forms["float32 from spikes"] = lambda: linear_of_spikes(spikes, weight, steps=4, rate=True)
        forms["float32 in parts"] = lambda: linear_of_means(left, weight)
    small = ((left * 40).to(torch.int8), (right * 40).to(torch.int8).t().contiguous().t())
    forms["int8"] = lambda: torch._int_mm(*small)
    found: dict[str, Any] = {"float32 from spikes": reason} if reason else {}
    for name, form in forms.items():
        try:
            found[name] = round(1000 * seconds(form), 3)
        except (RuntimeError, NotImplementedError) as error:
            found[name] = str(error).split("\n")[0]
    return {"rows": rows, "inner": inner, "outer": outer, "cpu_milliseconds": found}


@torch.no_grad()
def silent(source: Any, images: torch.Tensor, recipe: str, steps: int) -> dict[str, Any]:
    snn = transpike.convert(source, [images[::2]], recipe)
    rows: list[list[float]] = [[] for _ in range(steps)]
    neurons: list[list[float]] = [[] for _ in range(steps)]
    crossing, state = run_prefix(snn.program, (images[1::2],)), {}  # type: ignore[var-annotated]
    for t in range(1, steps + 1):

        def fire(marker: torch.fx.Node, value: torch.Tensor, t: int = t) -> torch.Tensor:
            site = str(marker.args[1])
            state[site], out, trains = advance(snn.neurons[site], state.get(site), t, value, snn.thresholds[site])
            fired = torch.stack([train != 0 for train in trains]).any(0)
            if site.endswith(":input") and fired.dim() == 3:
                rows[t - 1].append(1 - fired.any(-1).double().mean().item())
                neurons[t - 1].append(1 - fired.double().mean().item())
            return out

        run_body(snn.program, crossing, fire)
    shares = {"silent_neurons": neurons, "silent_rows": rows}
    return {"recipe": recipe, **{key: [round(sum(s) / len(s), 4) for s in value] for key, value in shares.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="DeiT-Tiny weights, .safetensors")
    parser.add_argument("--images", help="a folder of JPEG images")
    asked = parser.parse_args()
    found: dict[str, Any] = {"products": [products(6304, 192, 576), products(6304, 768, 3072)], "silent": []}
    if asked.checkpoint and asked.images:
        import timm
        from safetensors.torch import load_file

        from transpike.data import Preprocess, open_data, take
        from transpike.zoo import data_config

        source = timm.create_model("deit_tiny_patch16_224").eval()
        source.load_state_dict(load_file(asked.checkpoint))
        preprocess = Preprocess.from_config({**data_config(source), "crop_pct": 1.0})
        samples = take(open_data(str(Path(asked.images)), preprocess=preprocess, labels="none"), 32)
        images = torch.stack([samples.fetch(i)[0] for i in range(len(samples))])
        found["silent"] = [
            silent(source, images, recipe, 8) for recipe in ("ecmt", "differential", "cascade", "balanced")
        ]
    print(json.dumps({**found, "environment": versions(torch.device("cpu"))}, indent=1))


if __name__ == "__main__":
    main()
