"""Which divergence `balanced` should allow by default: calibration samples alone, one half held out; prints one JSON.

    cd examples && python ../benchmarks/divergence.py S OUT > divergence.json
    cd examples && python ../benchmarks/divergence.py S OUT --settings cutoff=0.5,correction=bias --divergences 0.001
    python benchmarks/divergence.py --table divergence.json

S and OUT as in docs/results.md. Of the samples that calibrate there, every second converts and the others judge, then
the other way round, so every calibration sample is judged once. By model, divergence and setting:

    agreement   share of decisions that are the source's; a token of a language model is a decision, too
    expected    the same from every change of the lead of the source's choice over its second, either sign, against
                every lead: smoother than counting, where a sample more or less is 1 %; takes both as independent
    points      100 x the mean of p(the source's choice) - p(the network's choice), both of the source: the accuracy
                that changed decisions cost, if the source's probabilities are right
    divergence  mean KL divergence from the source's prediction, in nats; spikes: per neuron

The rule of choice was written before it was run: the largest divergence of 0.0005, 0.001, 0.002 and 0.004 at which the
agreement is at least 99 % on average over the four models and at least 98 % on each. No evaluated sample is used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from transpike import SpikingModel, pipeline
from transpike.recipes import balanced
from transpike.report.machine import versions

DIVERGENCES = (0.0005, 0.001, 0.002, 0.004)
MEAN, EACH = 0.99, 0.98


@dataclass(frozen=True)
class Case:
    """A model and what calibrates it, as the commands of docs/results.md name them. Where `calibration` is None, that
    is a part of `data`."""

    name: str
    spec: str
    checkpoint: str | None
    data: pipeline.DataChoice
    calibration: pipeline.DataChoice | None = None
    every: int | None = None
    batch: int = 10


def cases(shared: str, out: str) -> list[Case]:
    data, unlabelled = pipeline.DataChoice, {"labels": "none", "split": "train"}
    return [
        Case("DeiT-Tiny", "timm:deit_tiny_patch16_224", f"{shared}/deit-tiny/deit_tiny_patch16_224.safetensors",
             data(f"{shared}/imagenet-sample-224", preprocess={"crop_pct": 1.0}), every=5),
        Case("ResNet-20", "shared_models:resnet20_cifar10", f"{shared}/resnet-cifar10/resnet20-12fca82f.safetensors",
             data(f"{shared}/cifar10/cifar10_test_jpg.tar", limit=506)),
        Case("MNIST ViT", "shared_models:mnist_vit", f"{shared}/vit-mnist/vit_mnist_gpu.safetensors",
             data(f"{shared}/mnist/mnist_test.npz", limit=200), data(f"{shared}/mnist/mnist_train.npz", **unlabelled),
             batch=4),
        Case("stories260K", f"hf:{out}/stories260k", None, data(f"{out}/stories.npz"),
             data(f"{out}/stories_calibration.npz", **unlabelled), batch=16),
    ]  # fmt: skip


@dataclass
class Judged:
    """What held-out predictions showed: [predictions] each, and spikes and neurons of the samples they came of."""

    same: list[torch.Tensor] = field(default_factory=list)
    lead: list[torch.Tensor] = field(default_factory=list)
    change: list[torch.Tensor] = field(default_factory=list)
    points: list[torch.Tensor] = field(default_factory=list)
    divergence: list[torch.Tensor] = field(default_factory=list)
    spikes: float = 0.0
    samples: int = 0

    def add(self, network: SpikingModel, inputs: torch.Tensor) -> None:
        run = network.simulate(inputs, 1)
        with torch.no_grad():
            source = network.source_module(inputs)
        source = getattr(source, "logits", source)
        logits, outputs = (x.double().reshape(-1, source.shape[-1]) for x in (source, run.outputs[-1]))
        best, chosen = logits.topk(2).indices, outputs.argmax(-1, keepdim=True)
        p, q = logits.log_softmax(-1), outputs.log_softmax(-1)
        lead = logits.gather(1, best).diff().neg().flatten()
        self.same.append(best[:, :1].eq(chosen).flatten().double())
        self.lead.append(lead)
        self.change.append(outputs.gather(1, best).diff().neg().flatten() - lead)
        self.points.append(100 * (p.gather(1, best[:, :1]).exp() - p.gather(1, chosen).exp()).flatten())
        self.divergence.append((p.exp() * (p - q)).sum(-1))
        self.spikes += float(run.spikes.spikes_per_neuron().sum()) * len(inputs)
        self.samples += len(inputs)

    def summary(self) -> dict[str, Any]:
        lead, size = torch.cat(self.lead), torch.cat(self.change).abs().sort().values
        overtaken = (len(size) - torch.searchsorted(size, lead)).double() / len(size) / 2  # half of the signs
        means = {name: float(torch.cat(getattr(self, name)).mean()) for name in ("same", "points", "divergence")}
        return {
            "agreement": means["same"],
            "expected": 1 - float(overtaken.mean()),
            "points": means["points"],
            "divergence": means["divergence"],
            "spikes": self.spikes / self.samples,
            "predictions": len(lead),
        }


def judged(case: Case, divergences: list[float], settings: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    module = pipeline.ModelChoice(case.spec, case.checkpoint).load()
    few = pipeline.parts(module, case.data, case.calibration, count=256, every=case.every)[0].samples
    samples = torch.stack([few.fetch(index)[0] for index in range(len(few))])
    halves = samples[::2], samples[1::2]
    asked = {
        (divergence, json.dumps(setting)): balanced(divergence=divergence, **setting)
        for divergence in divergences
        for setting in settings
    }
    found = {key: Judged() for key in asked}
    for fit, held in (halves, halves[::-1]):
        networks = pipeline.convert_each(module, list(fit.split(case.batch)), {str(k): r for k, r in asked.items()})
        for key in asked:
            network = networks[str(key)]
            if not isinstance(network, SpikingModel):
                raise network.error
            for batch in held.split(case.batch):
                found[key].add(network, batch)
            print(case.name, *key, f"{len(fit)} fit, {len(held)} held out", file=sys.stderr)
    for (divergence, setting), one in found.items():
        yield {"model": case.name, "asked": divergence, "setting": json.loads(setting), **one.summary()}


def choice(rows: list[dict[str, Any]]) -> float | None:
    """The rule above, on the rows of one setting."""
    by_asked: dict[float, list[float]] = {}
    for row in rows:
        by_asked.setdefault(row["asked"], []).append(row["agreement"])
    passing = [asked for asked, found in by_asked.items() if sum(found) / len(found) >= MEAN and min(found) >= EACH]
    return max(passing, default=None)


def table(result: dict[str, Any]) -> str:
    head = ("model", "setting", "asked", "held out", "agreement %", "expected %", "points", "spikes/neuron")
    lines = [head, ("---",) * len(head)]
    for row in result["rows"]:
        shares = [f"{100 * row[name]:.2f}" for name in ("agreement", "expected")]
        setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items()) or "default"
        numbers = (f"{row['divergence']:.5f}", *shares, f"{row['points']:.2f}", f"{row['spikes']:.2f}")
        lines.append((row["model"], setting, str(row["asked"]), *numbers))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", nargs="?", metavar="S")
    parser.add_argument("out", nargs="?", metavar="OUT")
    parser.add_argument(
        "--settings", default="", help="of the recipe, e.g. cutoff=0.75,cutoff=0.5; the default's if none"
    )
    parser.add_argument("--divergences", default=",".join(map(str, DIVERGENCES)))
    parser.add_argument("--models", help="names, comma-separated; all four if none")
    parser.add_argument("--table", metavar="FILE", help="show what was measured as a table")
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads(Path(asked.table).read_text("utf-8"))))
        return
    settings = [
        {key: value(text)} for key, _, text in (part.partition("=") for part in asked.settings.split(",") if part)
    ]
    settings = settings or [{}]
    wanted = [c for c in cases(asked.shared, asked.out) if asked.models is None or c.name in asked.models.split(",")]
    divergences = [float(text) for text in asked.divergences.split(",")]
    rows = [row for case in wanted for row in judged(case, divergences, settings)]
    chosen = {json.dumps(s): choice([row for row in rows if row["setting"] == s]) for s in settings}
    print(json.dumps({"rows": rows, "chosen": chosen, "environment": versions(torch.device("cpu"))}, indent=1))


def value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
