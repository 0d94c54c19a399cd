"""A model and data as a user names them -> the module, and samples as the module takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from . import zoo
from ._parts import Part
from .data import Preprocess, Samples, open_data, take
from .data.images import EncodedImages
from .data.preprocess import as_it_is
from .errors import ConfigError, DataError, ModelError

PREPROCESSING = ("input_size", "mean", "std", "crop_pct", "interpolation")
RESIZING = {"crop_pct", "interpolation"}


@dataclass(frozen=True)
class ModelChoice:
    """A model as a user names it."""

    spec: str
    checkpoint: str | None = None
    pretrained: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def load(self) -> torch.nn.Module:
        module = zoo.load_model(
            self.spec, checkpoint=self.checkpoint, pretrained=self.pretrained, options=self.options or None
        )[0]
        return module.to(self.device)

    @property
    def random_weights(self) -> bool:
        return self.spec.startswith("timm:") and self.checkpoint is None and not self.pretrained

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "checkpoint": self.checkpoint,
            "pretrained": self.pretrained,
            "options": dict(self.options),
        }


@dataclass(frozen=True)
class DataChoice:
    """Data as a user names it. `preprocess` overrides single facts of the model's own preprocessing; `named`: those of
    labels, split, max_length and PREPROCESSING that the user wrote, and which are refused where they say nothing."""

    spec: str
    labels: str = "auto"
    split: str = "test"
    limit: int | None = None
    seed: int = 0
    max_length: int | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    named: frozenset[str] = frozenset()

    def calibrating(self, spec: str | None) -> DataChoice | None:
        """Data that calibrate for these: all of their train split, without labels, prepared the same way."""
        if spec is None:
            return None
        return DataChoice(spec, "none", "train", None, self.seed, self.max_length, self.preprocess)

    def preparation(self, model: torch.nn.Module, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What makes model inputs of raw samples: what the model says, then the saved network, then the user. Where
        neither of the first two says anything, images stay as they are but for what the user asks.

        Raises: ConfigError for a way to resize without a size.
        """
        record = (saved or {}).get("calibration", {})
        lengths = (self.max_length, record.get("max_length"), _tokens(model))
        return {
            "preprocess": _overridden({**zoo.data_config(model), **record.get("preprocess", {})}, self.preprocess),
            "max_length": next((length for length in lengths if length is not None), None),
        }

    def open(self, model: torch.nn.Module, saved: Mapping[str, Any] | None = None) -> Samples:
        """`saved`: the config of the saved network that `model` belongs to."""
        known = self.preparation(model, saved)
        samples = open_data(
            self.spec,
            preprocess=Preprocess.from_config(known["preprocess"]) if known["preprocess"] else None,
            labels=self.labels,
            split=self.split,
            tokenizer=_tokenizer(model, saved) if self.spec.startswith("datasets:") else None,
            max_length=known["max_length"],
        )
        if idle := ", ".join(f"--{name.replace('_', '-')}" for name in sorted(self.named & _unread(self, samples))):
            raise ConfigError(f"{idle} would change nothing about {self.spec}; leave that out")
        if self.limit is None:
            return samples
        return take(samples, self.limit, seed=self.seed)


def _overridden(known: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of preprocessing, with those that a user asks for instead."""
    if asked and not known:
        channels = (*asked.get("input_size", ())[:1], len(asked.get("mean", ())), len(asked.get("std", ())))
        known = asdict(as_it_is(max(channels)))
    found = {**known, **asked}
    if RESIZING & asked.keys() and found.get("input_size", ()) is None:
        raise ConfigError("images are not resized, for nobody says to which size; add --input-size C,H,W")
    return found


def _unread(data: DataChoice, samples: Samples) -> set[str]:
    """Options that say nothing about data like these."""
    whole = Part(samples, data.spec).whole
    files, text = isinstance(whole, EncodedImages), getattr(whole, "tokenizer", None) is not None
    unsplit = "split" in data.named and not has_splits(data.spec)
    images = isinstance(getattr(whole, "preprocess", getattr(whole, "read", None)), Preprocess)
    idle = {"labels": not files, "max_length": not text, "split": unsplit, **dict.fromkeys(PREPROCESSING, not images)}
    return {name for name, holds in idle.items() if holds}


def has_splits(spec: str) -> bool:
    """Whether data that can be opened refuse a split that none has."""
    try:
        open_data(spec, labels="none", split="")
    except DataError:
        return True
    return False


def _tokenizer(model: torch.nn.Module, saved: Mapping[str, Any] | None) -> Any:
    """That of the model's folder; a saved network knows the name of it."""
    name = getattr(model, "_transpike_folder", None)
    if name is not None:
        return zoo.tokenizer(f"hf:{name}")
    source = (saved or {}).get("source", {})
    if source.get("kind") != "hf":
        return None
    try:
        return zoo.tokenizer(f"hf:{source['name']}")
    except ModelError as error:
        raise DataError(
            f"hf:{source['name']}, which has the tokenizer, is neither a folder here nor in the local cache; "
            "say where it is: --model hf:FOLDER"
        ) from error


def _tokens(model: torch.nn.Module) -> int | None:
    """The longest text a model takes, where that is less than what tokenizing pads to."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return most if isinstance(most, int) and 0 < most < 128 else None


__all__ = ["DataChoice", "ModelChoice", "has_splits"]
