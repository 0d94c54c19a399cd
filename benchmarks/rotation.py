"""Whether outliers are worth a rotation: spikes of a cascade at equal error of what reads it; prints one JSON object.

    python benchmarks/rotation.py vit DEIT_TINY.safetensors IMAGES [DIVERGENCE] > vit.json
    python benchmarks/rotation.py llama STORIES260K_FOLDER stories_calibration.npz [DIVERGENCE] > llama.json

Every site that linear layers read is looked at by itself, on calibration samples (every fifth of the images). With W
the weights that read it, all stacked, and e what its neurons leave unsaid, the error is the mean of |W e|^2. The error
to meet is that of `balanced` with one threshold per site and that divergence (0.001). Then the neurons say, with the
largest threshold that meets it,

    none       x
    range      x by channel in units of a power of two of its largest value           (granularity=channel)
    weights    x by channel in units of a power of two near 1 / |its column of W|     (white noise costs the same)
    hadamard   S H x with random signs S and H in blocks of the largest power of two; W becomes W H' S
    random     Q x with a random orthogonal Q;                                        W becomes W Q'
    principal  V x with the principal axes V of x;                                    W becomes W V'
    karhunen   U R x with R'R = W'W and U the principal axes of R x;                  W becomes W R^-1 U'
    centred    x less its mean by channel, which goes into the bias
    positions  x less its mean by position and channel, which becomes a bias by position

Means and axes are those of the first half of the samples; all is measured on the second half.

A site's share of all accumulates is its spikes times the rows of W. `online` is what additions of a fast Hadamard
transform would come on top, in the same unit, where it cannot be folded into what lies before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import torch

import transpike
from transpike._execute import run_body, run_prefix
from transpike.data import Preprocess, open_data, split
from transpike.neurons import Differential, trajectory
from transpike.recipes import balanced
from transpike.report.machine import versions
from transpike.types import SiteKind, Threshold
from transpike.zoo import data_config, load_model

ROWS = 1024  # looked at per site, of all samples and positions
CUTOFF, PULSES, STEPS = 0.75, 6, 14  # bisections


@dataclass(frozen=True)
class Seen:
    """x [rows, channels], W [outputs, channels], how many rows a sample has, to which of them those of x belong;
    means [rows of a sample, channels] and second moments of other samples."""

    name: str
    x: torch.Tensor
    weight: torch.Tensor
    rows: int
    position: torch.Tensor
    means: torch.Tensor
    second: torch.Tensor


def hadamard(size: int, generator: torch.Generator) -> torch.Tensor:
    """Orthogonal, with random signs: blocks of the largest power of two that divides the size."""
    block = size & -size
    one = torch.ones(1, 1, dtype=torch.float64)
    while one.shape[0] < block:
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)]) / 2**0.5
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return torch.block_diag(*[one] * (size // block)) * signs


def power_of_two(value: torch.Tensor) -> torch.Tensor:
    return torch.exp2(value.clamp(min=2.0**-40).log2().round())


def forms(seen: Seen) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(what neurons say, what reads it) for every way to write the same product."""
    x, weight, generator = seen.x, seen.weight, torch.Generator().manual_seed(0)
    found = {"none": (x, weight)}
    for name, size in (("range", x.abs().amax(0)), ("weights", 1 / weight.norm(dim=0).clamp(min=1e-12))):
        scale = power_of_two(size / size.median().clamp(min=1e-12)).clamp(2.0**-8, 2.0**8)
        found[name] = (x / scale, weight * scale)
    turn = hadamard(x.shape[1], generator)
    found["hadamard"] = (x @ turn.T, weight @ turn.T)
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=torch.float64))[0]
    found["random"] = (x @ turn.T, weight @ turn.T)
    axes = torch.linalg.eigh(seen.second)[1].T
    found["principal"] = (x @ axes.T, weight @ axes.T)
    values, vectors = torch.linalg.eigh(weight.T @ weight)
    size = values.clamp(min=1e-4 * float(values[-1])).sqrt()
    root, back = (vectors * size) @ vectors.T, (vectors / size) @ vectors.T
    axes = torch.linalg.eigh(root @ seen.second @ root)[1].T
    found["karhunen"] = (x @ root @ axes.T, weight @ back @ axes.T)
    found["centred"] = (x - seen.means.mean(0), weight)
    found["positions"] = (x - seen.means[seen.position], weight)
    return found


def measure(x: torch.Tensor, gram: torch.Tensor, smallest: float) -> tuple[float, float]:
    """(mean |W e|^2 a row, mean spikes a neuron) of a cascade with that smallest level, that clips nothing."""
    peak = float(x.abs().max())
    count = min(max(1 + ceil(log2(max(peak / smallest, 1.0))), 1), 24)
    top = smallest * 2.0 ** (count - 1)
    neuron = Differential(count, CUTOFF, PULSES)
    out, fired, _ = trajectory(neuron, x.float()[None], Threshold(top, top), masks=True)
    rest = x - out[-1].double()
    return float(((rest @ gram) * rest).sum(1).mean()), float(fired[0].double().mean())  # type: ignore[index]


def spikes_at(x: torch.Tensor, weight: torch.Tensor, error: float) -> float:
    """Spikes a neuron at that error, between the two nearest of a bisection over the smallest level."""
    gram, peak = weight.T @ weight, float(x.abs().max())
    low, high = log2(peak) - 20, log2(peak) + 1  # error too small, too large
    below = above = (0.0, 0.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        here = measure(x, gram, 2.0**middle)
        if here[0] > error:
            high, above = middle, here
        else:
            low, below = middle, here
    if not below[0] > 0 or not above[0] > below[0]:
        return below[1]
    share = (log2(error) - log2(below[0])) / (log2(above[0]) - log2(below[0]))
    return below[1] + share * (above[1] - below[1])


def sites(source: torch.nn.Module, batches: list[Any], divergence: float) -> Iterator[tuple[Seen, float]]:
    """Every site that only linear layers read, and the smallest level that `balanced` gives it."""
    snn = transpike.convert(source, batches, balanced(divergence=divergence, granularity="tensor"))
    kept: dict[str, list[torch.Tensor]] = {}

    def note(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        kept.setdefault(str(marker.args[1]), []).append(value.detach())
        return value

    with torch.no_grad():
        for batch in batches:
            leaves = snn.prepare(batch)
            run_body(snn.program, run_prefix(snn.program, leaves), note)
    modules, layers = dict(source.named_modules()), {layer.name: layer for layer in snn.plan.layers}
    for site in snn.plan.sites:
        readers = [modules.get(layers[name].module) for name, _ in site.reads]
        if site.kind is not SiteKind.LINEAR or not all(isinstance(reader, torch.nn.Linear) for reader in readers):
            continue
        weight = torch.cat([reader.weight.detach() for reader in readers]).double()  # type: ignore[union-attr]
        level = snn.thresholds[site.name].positive * 2.0 ** (1 - snn.neurons[site.name].levels)
        yield seen_of(site.name, torch.cat(kept[site.name]), weight), level


def seen_of(name: str, value: torch.Tensor, weight: torch.Tensor) -> Seen:
    value = value.double().view(len(value), -1, value.shape[-1])  # [samples, rows, channels]
    before, after = value.split([len(value) // 2, len(value) - len(value) // 2])
    flat, rows = before.flatten(0, 1), value.shape[1]
    pick = torch.randperm(len(after) * rows, generator=torch.Generator().manual_seed(0))[:ROWS]
    x = after.flatten(0, 1)[pick]
    return Seen(name, x, weight, rows, pick % rows, before.mean(0), flat.T @ flat / len(flat))


def compared(seen: Seen, level: float) -> dict[str, Any]:
    error, _ = measure(seen.x, seen.weight.T @ seen.weight, level)
    channels, x = seen.x.shape[1], seen.x
    spread = x.square().mean(0).sqrt()
    kurtosis = float((x - x.mean()).pow(4).mean() / (x - x.mean()).square().mean().square())
    return {
        "site": seen.name,
        "channels": channels,
        "outputs": len(seen.weight),
        "fan": seen.rows * channels * len(seen.weight),
        "relative_error": error / float((x @ seen.weight.T).square().sum(1).mean()),
        "kurtosis": round(kurtosis, 2),
        "largest_channel": round(float(spread.max() / spread.median().clamp(min=1e-12)), 2),
        "spikes": {name: round(spikes_at(*form, error), 4) for name, form in forms(seen).items()},
        "online": seen.rows * channels * log2(channels & -channels),
    }


def summary(rows: list[dict[str, Any]], role: Callable[[str], str]) -> list[dict[str, Any]]:
    """Accumulates of all sites of one role and of all, as a ratio to the form `none`."""
    found = []
    for name in [*dict.fromkeys(role(row["site"]) for row in rows), "all"]:
        mine = [row for row in rows if name in ("all", role(row["site"]))]
        sums = {form: sum(row["fan"] * row["spikes"][form] for row in mine) for form in mine[0]["spikes"]}
        best = sum(row["fan"] * min(row["spikes"]["none"], row["spikes"]["hadamard"]) for row in mine)
        found.append({
            "role": name,
            "sites": len(mine),
            "spikes": sums["none"] / sum(row["fan"] for row in mine),
            "ratio": {form: value / sums["none"] for form, value in sums.items()},
            "hadamard_where_it_pays": best / sums["none"],
            "online": sum(row["online"] for row in mine) / sums["none"],
            "kurtosis": sum(row["kurtosis"] for row in mine) / len(mine),
            "largest_channel": sum(row["largest_channel"] for row in mine) / len(mine),
        })  # fmt: skip
    return found


def main(kind: str, weights: str, data: str, divergence: str = "0.001") -> None:
    if kind == "vit":
        import timm
        from safetensors.torch import load_file

        source = timm.create_model("deit_tiny_patch16_224").eval()
        source.load_state_dict(load_file(weights))
        preprocess = Preprocess.from_config({**data_config(source), "crop_pct": 1.0})
        few, _ = split(open_data(data, preprocess=preprocess, labels="none"), every=5)
        images = torch.stack([few.fetch(i)[0] for i in range(len(few))])
        batches: list[Any] = list(images.split(10))
    else:
        source = load_model(f"hf:{weights}")[0]
        few = open_data(data, labels="none")
        batches = list(torch.stack([few.fetch(i)[0] for i in range(len(few))]).split(16))
    rows = [compared(seen, level) for seen, level in sites(source, batches, float(divergence))]
    found = {"model": kind, "divergence": float(divergence), "summary": summary(rows, role), "sites": rows}
    print(json.dumps({**found, "environment": versions(torch.device("cpu"))}, indent=1))


def role(site: str) -> str:
    """`blocks.3.attn.qkv:input` -> attn.qkv."""
    parts = site.partition(":")[0].split(".")
    return ".".join(part for part in parts if not part.isdigit() and part not in ("blocks", "model", "layers"))


if __name__ == "__main__":
    main(*sys.argv[1:])
