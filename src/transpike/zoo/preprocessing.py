"""What a model's own configuration says about its inputs: image sizes, mean and standard deviation, the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from transpike.errors import ModelError
from transpike.zoo.hf_configs import find_folder, import_transformers
from transpike.zoo.source import parse_spec

KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
RESAMPLING = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))  # the numbers of PIL
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def data_config(model: nn.Module) -> dict[str, Any]:
    """How images are prepared for `model`, under timm's keys; {} if its configuration does not say.

    input_size (C, H, W), interpolation, mean and std (of values in 0..1), crop_pct (side of the crop / side resized
    to), crop_mode ("center", or "squash": resized to the input size, whatever the aspect ratio).
    """
    facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(facts, Mapping):
        return _of_timm(model, facts)
    name = getattr(model, "_transpike_folder", None) or getattr(model, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return {}
    try:
        return _of_processor(processor_facts(find_folder(name)), model)
    except ModelError:  # built from a folder that has gone, or from a config alone
        return {}


def tokenizer(spec: str, *, pretrained: bool = False) -> Any | None:
    """The tokenizer beside the model "hf:FOLDER_OR_NAME", or None; downloaded only if `pretrained`.

    Raises: ModelError if `spec` is of no known form or names no model; MissingExtra.
    """
    kind, name = parse_spec(spec)
    if kind != "hf":
        return None
    folder = find_folder(name, pretrained=pretrained)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    transformers = import_transformers(f"the tokenizer of {spec}")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception:  # one that needs another package, or code of the hub: the caller brings token ids
        return None


def processor_facts(folder: Path) -> dict[str, Any]:
    """The image processor's settings in a Hugging Face folder; {} if it has none."""
    file = next((folder / name for name in PROCESSOR_FILES if (folder / name).is_file()), None)
    try:
        facts = dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}
    except (OSError, ValueError, TypeError):
        return {}
    facts = facts.get("image_processor", facts)
    if "image_mean" not in facts and "size" not in facts:
        return {}  # of sound, or of nothing
    try:  # the class knows the defaults that older files left out
        processor = import_transformers("the image processor").AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return {**facts, **processor.to_dict()}
    except Exception:  # without torchvision, or of a class that is not known
        return facts


def _of_timm(model: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    if "architecture" in facts:
        try:
            from timm.data.config import resolve_data_config
        except ImportError:
            pass
        else:
            config = dict(resolve_data_config(model=model))
            built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
            if built_for:  # img_size=... leaves timm's configuration at the size of the pretrained weights
                config["input_size"] = (config["input_size"][0], *built_for)
            return config
    return {key: facts[key] for key in KEYS if facts.get(key) is not None}


def _of_processor(facts: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    geometry = _geometry(facts)
    if not geometry:
        return {}
    rescale = facts.get("rescale_factor") or 1 / 255
    scale = 255 * (rescale if facts.get("do_rescale", True) else 1.0)  # what a white pixel is when mean is subtracted
    normalised = facts.get("do_normalize", True) and facts.get("image_mean") and facts.get("image_std")
    mean, std = (facts["image_mean"], facts["image_std"]) if normalised else ([0.0] * 3, [1.0] * 3)
    channels = getattr(getattr(model, "config", None), "num_channels", None) or len(mean)
    return {
        "input_size": (channels, *geometry["size"]),
        "interpolation": RESAMPLING.get(facts.get("resample", 2), "bilinear"),
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
        "crop_pct": geometry["crop_pct"],
        "crop_mode": geometry["crop_mode"],
    }


def _geometry(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The size (H, W) that the model sees, the share of the resized image that it is, and how it got there."""
    size, crop = facts.get("size") or {}, facts.get("crop_size")
    size = size if isinstance(size, Mapping) else {"shortest_edge": size}
    edge = size.get("shortest_edge")
    if facts.get("do_center_crop") and crop:
        cropped = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        resized = edge or size.get("height") or cropped[0]
        return {"size": cropped, "crop_pct": cropped[0] / resized, "crop_mode": "center"}
    if size.get("height"):
        return {"size": (size["height"], size["width"]), "crop_pct": 1.0, "crop_mode": "squash"}
    if not isinstance(edge, int):
        return {}
    share = facts.get("crop_pct")
    if share and edge < 384:  # ConvNeXt's processor crops only below 384
        return {"size": (edge, edge), "crop_pct": share, "crop_mode": "center"}
    return {"size": (edge, edge), "crop_pct": 1.0, "crop_mode": "squash"}
