"""SpikingJelly 2.0 on the benchmark's models: accuracy, spikes, its own operation count, wall-clock; prints JSON.

    SPIKINGJELLY_ENVIRONMENT/bin/python theirs.py DATA_DIR [vit] [resnet20] > theirs.json

Only SpikingJelly's public interface is called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

common.import_torchvision()  # before SpikingJelly, which imports it too

from counting import Spikes, own_count  # noqa: E402
from spikingjelly.activation_based import ann2snn, functional  # noqa: E402

Feed = Callable[[Tensor, int], Tensor]
Convert = Callable[[nn.Module, Tensor], nn.Module]


@dataclass(frozen=True)
class Method:
    """A recipe, its steps T, how inputs [B, ...] become [T, B, ...], and the steps at which it is priced. `scored`: the
    steps run on every sample; the others are shown to change nothing on the first batch."""

    name: str
    steps: int
    convert: Convert
    feed: Feed
    priced: tuple[int, ...]
    scored: int


def impulse(x: Tensor, steps: int) -> Tensor:
    """The image in step 1, zeros after it: what STATransformerRecipe is made for."""
    return torch.cat([x[None], x.new_zeros(steps - 1, *x.shape)])


def spread(x: Tensor, steps: int) -> Tensor:
    """x / T in every step; class token, positions and biases of STATransformerRecipe still enter in step 1."""
    return constant(x / steps, steps)


def constant(x: Tensor, steps: int) -> Tensor:
    """x in every step: rate coding."""
    return x[None].repeat(steps, *[1] * x.dim())


def sta(steps: int, mode: str, scale: float) -> Convert:
    def convert(model: nn.Module, samples: Tensor) -> nn.Module:
        recipe = ann2snn.STATransformerRecipe(
            dataloader=[samples], time_steps=steps, mode="spiking_encoder", threshold_mode=mode, threshold_scale=scale
        )
        return ann2snn.Converter(recipe=recipe, device="cpu").convert(model)

    return convert


def rate(**options: Any) -> Convert:
    def convert(model: nn.Module, samples: Tensor) -> nn.Module:
        recipe = ann2snn.RateCodingRecipe(dataloader=[(samples, None)], mode="99.9%", **options)
        return ann2snn.Converter(recipe=recipe, device="cpu").convert(model)

    return convert


def balanced(model: nn.Module, samples: Tensor) -> nn.Module:
    """Thresholds grow a little with each batch: 12 passes over 32 batches, as many updates as its ImageNet example."""
    batches = [(batch, None) for _ in range(12) for batch in samples.split(8)]
    recipe = ann2snn.LocalThresholdBalancingRecipe(dataloader=batches)
    return ann2snn.Converter(recipe=recipe, device="cpu").convert(model)


def sta_method(steps: int, mode: str, scale: float) -> Method:
    name = f"STA, {'MSE' if mode == 'mse' else 'maximum'} x {scale:g}"
    return Method(name, steps, sta(steps, mode, scale), impulse, (1, steps) if steps > 1 else (1,), scored=1)


METHODS: dict[str, list[Method]] = {
    "vit": [
        *(sta_method(steps, "mse", 0.5) for steps in (1, 2, 4, 8)),
        Method("STA, MSE x 0.5, fed x/T", 4, sta(4, "mse", 0.5), spread, (4,), scored=4),
        sta_method(8, "max", 1.0),
    ],
    "resnet20": [
        Method("rate coding, 99.9 %", 32, rate(), constant, (8, 16, 32), scored=32),
        Method(
            "rate coding, 99.9 %, channels, half threshold",
            32,
            rate(channel_wise=True, half_threshold=True),
            constant,
            (8, 16, 32),
            scored=32,
        ),
        Method("local threshold balancing", 32, balanced, constant, (8, 16, 32), scored=32),
    ],
}


def prepared(snn: nn.Module, method: Method, x: Tensor, steps: int) -> Tensor:
    """The input of `steps` steps on a network made ready for it. What STATransformerRecipe converts for T steps runs T
    steps in multi-step mode; its first step alone runs in single-step mode, on [B, ...]."""
    alone = steps < method.steps and method.feed is impulse
    functional.set_step_mode(snn, "s" if alone else "m")
    functional.reset_net(snn)
    return x if alone else method.feed(x, steps)


def outputs_of(snn: nn.Module, method: Method, x: Tensor, steps: int) -> Tensor:
    """[T, B, classes]: the sum of what came out until each step."""
    output = snn(prepared(snn, method, x, steps))
    return output.cumsum(0) if output.dim() == 3 else output[None]


def run(data: Path, name: str, method: Method, source: nn.Module) -> dict[str, Any]:
    """Convert on the calibration samples, price, evaluate on the others."""
    samples, _ = common.read_images(data, name, common.read_split(name)["calibrate"])
    snn = method.convert(common.MODELS[name](data), samples).eval()
    with torch.no_grad():
        return {
            "method": method.name,
            "steps": method.steps,
            **priced(data, name, method, source, snn),
            **scored(data, name, method, source, snn),
        }


def priced(data: Path, name: str, method: Method, source: nn.Module, snn: nn.Module) -> dict[str, Any]:
    """SpikingJelly's own count of one sample and the wall-clock of one batch."""
    x, _ = common.read_images(data, name, common.read_split(name)["evaluate"][: common.BATCH[name]])
    counts, seconds = {}, {}
    for steps in method.priced:
        counts[str(steps)] = own_count(snn, prepared(snn, method, x[:1], steps))
        seconds[str(steps)] = common.timed(lambda: source(x), lambda t=steps: outputs_of(snn, method, x, t))
    return {"own_count": counts, "seconds": seconds}


def scored(data: Path, name: str, method: Method, source: nn.Module, snn: nn.Module) -> dict[str, Any]:
    files, steps = common.read_split(name)["evaluate"], method.scored
    later = later_steps(data, name, method, snn) if steps < method.steps else None
    starts = delay_starts(data, name, method, snn) if method.feed is constant else {}
    spikes, hits = Spikes(snn, steps, single=steps < method.steps), Hits()
    for x, y in common.batches(data, name, files):
        outputs, answers = outputs_of(snn, method, x, steps), source(x).argmax(-1)
        hits.add("", outputs, y, answers)
        for read, start in starts.items():  # what came out before step `start` (from 0) is not read
            late = outputs[read - 1 : read] - (outputs[start - 1] if start else 0)
            hits.add(str(read), late, y, answers)
    accuracy, agreement = hits.shares("", len(files))
    delayed = {
        str(read): {
            "start": start,
            **dict(zip(("accuracy", "agreement"), hits.shares(str(read), len(files)), strict=True)),
        }
        for read, start in starts.items()
    }
    return {
        "scored_steps": steps,
        "later_steps": later,
        "accuracy": accuracy,
        "agreement": agreement,
        "delayed": delayed,
        "neurons": spikes.neurons,
        "events_per_neuron": (spikes.events / len(files) / spikes.neurons).tolist(),
        "units_per_neuron": (spikes.units / len(files) / spikes.neurons).tolist(),
        "largest_count": spikes.largest,
        "accumulates": (spikes.accumulates / len(files)).tolist(),
    }


class Hits(dict[str, Tensor]):
    """Samples right and samples the source agrees on, [2, T], by the way of reading the output."""

    def add(self, way: str, outputs: Tensor, labels: Tensor, answers: Tensor) -> None:
        chosen = outputs.argmax(-1)
        self[way] = self.get(way, 0) + torch.stack([(chosen == labels).sum(1), (chosen == answers).sum(1)])

    def shares(self, way: str, samples: int) -> list[list[float]]:
        return (self[way].double() / samples).tolist()


def delay_starts(data: Path, name: str, method: Method, snn: nn.Module) -> dict[int, int]:
    """SpikingJelly's delayed read-out: by the steps T, the step before which outputs are left out."""
    x, _ = common.read_images(data, name, common.read_split(name)["calibrate"][:32])
    functional.set_step_mode(snn, "s")
    return {steps: ann2snn.estimate_delay_start(snn, [x], "cpu", steps) for steps in method.priced}


def later_steps(data: Path, name: str, method: Method, snn: nn.Module) -> dict[str, Any]:
    """What steps beyond the scored ones do on the first batch: events, and the largest change of the output."""
    x, _ = common.read_images(data, name, common.read_split(name)["evaluate"][: common.BATCH[name]])
    with Spikes(snn, method.steps) as spikes:
        outputs = outputs_of(snn, method, x, method.steps)
    change = (outputs[method.scored - 1 :] - outputs[method.scored - 1]).abs().max()
    return {"samples": len(x), "events": spikes.events[method.scored :].tolist(), "output_change": float(change)}


@torch.no_grad()
def source_of(data: Path, name: str, source: nn.Module) -> dict[str, Any]:
    x, y = common.read_images(data, name, common.read_split(name)["evaluate"])
    answers = torch.cat([source(part).argmax(-1) for part in x.split(common.BATCH[name])])
    return {
        **common.described(name),
        "accuracy": (answers == y).double().mean().item(),
        "own_count": own_count(source, x[:1]),
        "own_count_fused_attention": own_count(source, x[:1], math_attention=False),
    }


def main(data: Path, names: list[str]) -> dict[str, Any]:
    models = {}
    for name in names:
        source = common.MODELS[name](data)
        runs = []
        for method in METHODS[name]:
            print(f"{name}: {method.name}, T = {method.steps}", file=sys.stderr)
            runs.append(run(data, name, method, source))
        models[name] = {"source": source_of(data, name, source), "runs": runs}
    return {"tool": "SpikingJelly", "environment": common.environment("spikingjelly"), "models": models}


if __name__ == "__main__":
    torch.set_num_threads(common.THREADS)
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:] or list(METHODS)), indent=1))
