"""The verbs in order, as the command line runs them: load, open, split, convert, evaluate. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import zoo
from ._convert import convert
from ._evaluate import Evaluation, evaluate
from ._model import SpikingModel
from .codecs.bundle import CONFIG, FORMAT, load, read_config
from .data import Preprocess, Samples, Subset, loader, open_data, split, take
from .errors import DataError
from .recipes import Recipe

Failure = Callable[[str, Exception], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ModelChoice:
    """A model as a user names it."""

    spec: str
    checkpoint: str | None = None
    pretrained: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> torch.nn.Module:
        return zoo.load_model(
            self.spec, checkpoint=self.checkpoint, pretrained=self.pretrained, options=self.options or None
        )[0]

    @property
    def random_weights(self) -> bool:
        return self.spec.startswith("timm:") and self.checkpoint is None and not self.pretrained

    def to_json(self) -> dict[str, Any]:
        return {"spec": self.spec, "checkpoint": self.checkpoint, "pretrained": self.pretrained, "options": dict(self.options)}


@dataclass(frozen=True)
class DataChoice:
    """Data as a user names it. `preprocess` overrides single facts of the model's own preprocessing."""

    spec: str
    labels: str = "auto"
    split: str = "test"
    limit: int | None = None
    seed: int = 0
    max_length: int | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def open(self, model: torch.nn.Module) -> Samples:
        config = {**zoo.data_config(model), **self.preprocess}
        samples = open_data(
            self.spec,
            preprocess=Preprocess.from_config(config) if config else None,
            labels=self.labels,
            split=self.split,
            tokenizer=_tokenizer(model) if self.spec.startswith("datasets:") else None,
            max_length=self.max_length,
        )
        if self.limit is None:
            return samples
        return take(samples, self.limit, seed=self.seed)


def _tokenizer(model: torch.nn.Module) -> Any:
    folder = getattr(model, "_transpike_folder", None)
    return None if folder is None else zoo.tokenizer(f"hf:{folder}")


@dataclass(frozen=True)
class Part:
    """Samples and where they came from, for the report and for keeping calibration and evaluation apart."""

    samples: Samples
    spec: str

    def record(self) -> dict[str, Any]:
        samples = self.samples
        parent = samples
        indices: list[int] | None = None
        while isinstance(parent, Subset):
            indices = list(parent.indices) if indices is None else [parent.indices[i] for i in indices]
            parent = parent.parent
        return {
            "data": self.spec,
            "name": samples.name,
            "fingerprint": parent.fingerprint(),
            "samples": len(samples),
            "of": len(parent),
            "indices": indices,
        }


def separate(
    data: Part, calibration: Part | None, *, count: int, every: int | None, seed: int
) -> tuple[Part, Part, str]:
    """(calibration, evaluation) with no sample in both, and a remark on how they were kept apart ("": two sources).

    One source serving both is split: every k-th sample, or `count` random ones, calibrate.
    """
    if calibration is not None and not _same(calibration.samples, data.samples):
        return Part(take(calibration.samples, count, seed=seed), calibration.spec), data, ""
    few = min(count, max(1, len(data.samples) // 2))
    chosen, rest = split(data.samples, calibration=few, seed=seed, every=every)
    how = f"every {every}th sample" if every is not None else f"{len(chosen)} random samples (seed {seed})"
    remark = f"calibration and evaluation share {data.spec}: {how} calibrate, the other {len(rest)} are evaluated"
    return Part(chosen, data.spec), Part(rest, data.spec), remark


def _same(one: Samples, other: Samples) -> bool:
    return len(one) == len(other) and one.fingerprint() == other.fingerprint()


def without_calibration(data: Part, saved: Mapping[str, Any]) -> tuple[Part, str]:
    """`data` less the samples a saved network was calibrated on, when it is the same data."""
    record = data.record()
    if record["fingerprint"] != saved.get("fingerprint"):
        return data, ""
    used = set(range(record["of"]) if saved.get("indices") is None else saved["indices"])
    here = range(record["of"]) if record["indices"] is None else record["indices"]
    kept = tuple(position for position, index in enumerate(here) if index not in used)
    if not kept:
        raise DataError(f"every sample of {data.spec} was used to calibrate this network; evaluate on other data")
    if len(kept) == len(data.samples):
        return data, ""
    remark = f"{len(data.samples) - len(kept)} samples of {data.spec} calibrated this network and are left out"
    return Part(Subset(data.samples, kept), data.spec), remark


def inputs_of(part: Part, batch_size: int, on_failure: Failure | None) -> Iterator[Any]:
    """Model inputs in batches, without labels."""
    return (batch.inputs for batch in loader(part.samples, batch_size=batch_size, on_failure=on_failure))


def convert_on(
    model: torch.nn.Module,
    part: Part,
    recipe: Recipe,
    *,
    batch_size: int = 16,
    batch_dim: int = 0,
    on_failure: Failure | None = None,
    progress: Progress | None = None,
) -> SpikingModel:
    """Convert with every sample of `part` for calibration."""
    batches = inputs_of(part, batch_size, on_failure)
    return convert(model, batches, recipe, batch_dim=batch_dim, max_samples=None, progress=progress)


def evaluate_on(
    model: SpikingModel,
    part: Part,
    *,
    steps: int,
    batch_size: int = 16,
    mode: str = "auto",
    on_failure: Failure | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate on every sample of `part`; labels beyond the model's classes are refused."""
    batches = loader(part.samples, batch_size=batch_size, on_failure=on_failure, num_classes=model.num_outputs)
    return evaluate(model, batches, steps=steps, mode=mode, progress=progress)


def is_saved(target: str) -> bool:
    """Whether a command-line argument names a saved network rather than a model."""
    return (Path(target) / CONFIG).is_file() and FORMAT in (Path(target) / CONFIG).read_text("utf-8", errors="replace")


__all__ = [
    "DataChoice",
    "ModelChoice",
    "Part",
    "convert_on",
    "evaluate_on",
    "inputs_of",
    "is_saved",
    "load",
    "read_config",
    "separate",
    "without_calibration",
]
