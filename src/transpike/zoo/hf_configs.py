"""Hugging Face folders and configurations: finding them, and keeping them from reaching for code, weights or disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transpike.errors import MissingExtra, ModelError
from transpike.zoo.source import reason
from transpike.zoo.timm_models import READING_OPTIONS

SMALL_FILES = ("*.json", "*.txt", "*.model")  # configuration and vocabulary
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors")

ATTENTION = ("eager", "sdpa")

# How a config asks for code of the hub, for weights from elsewhere, or names a path on somebody's disk.
DROPPED_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "transformers_weights",
        "use_pretrained_backbone",
    }
)


def import_transformers(purpose: str) -> Any:
    """The transformers package.

    Raises: MissingExtra, saying that `purpose` needs it.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "text", purpose) from error
    return transformers


def find_folder(name: str, *, pretrained: bool = False, weights: bool = False) -> Path:
    """The folder `name`, or the local copy of the hub's model of that name, which is downloaded only if `pretrained`.

    Raises: ModelError if there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name}; hf: takes the folder that save_pretrained wrote, or a hub name")
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES, *(WEIGHT_FILES if weights else ())]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not pretrained))
    except Exception as error:  # the network, the disk, a name that is none
        if pretrained:
            why = f"could be downloaded ({reason(error)}); check the name and the connection"
        else:  # the hub's own words advise an argument of its own
            why = "is a folder here or in the local cache; give a folder, or allow a download: --pretrained"
        raise ModelError(f"no Hugging Face model {name!r} {why}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The raw config.json of a folder.

    Raises: ModelError if there is none, or none that this transformers can build in full precision; MissingExtra.
    """
    transformers = import_transformers(f"the model hf:{folder}")
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"the folder {folder} has no config.json, so it is no Hugging Face model; use save_pretrained")
    try:
        raw = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file} cannot be read ({reason(error)}); save or download it again") from error
    if raw.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"transformers {transformers.__version__} knows no model type {raw.get('model_type')!r}, as {file} has it; "
            "upgrade it, or load the model yourself: code of the hub is never run"
        )
    if "quantization_config" in raw:
        raise ModelError(f"{folder} is a quantised checkpoint; use the full-precision weights it was made from")
    return raw


def safe_config(raw: Any, dtype: str) -> Any:
    """`raw` without what reaches outside, and with `dtype` for every part of the model.

    Raises: ModelError if a timm backbone within it would read a file or the hub.
    """
    if isinstance(raw, list | tuple):
        return [safe_config(value, dtype) for value in raw]
    if not isinstance(raw, Mapping):
        return raw
    kept: dict[Any, Any] = {}
    for key, value in raw.items():
        reads = key in ("model_args", "backbone_kwargs") and isinstance(value, Mapping) and READING_OPTIONS & set(value)
        if reads or (key in ("architecture", "backbone") and ":" in str(value)):
            raise ModelError(f"the config's {key} = {value!r:.200} loads from elsewhere; take it out of the config")
        if key in ("dtype", "torch_dtype") and not isinstance(value, int | float):
            kept["dtype"] = dtype
        elif key not in DROPPED_KEYS:
            kept[key] = safe_config(value, dtype)
    return kept


def attention_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Which of the two ways to compute attention that are in every installation the config asks for, if any."""
    asked = config.get("attn_implementation")
    return {"attn_implementation": asked} if asked in ATTENTION else {}


def config_object(model_class: Any, raw: Mapping[str, Any], *, dtype: str) -> Any:
    """The config of `model_class` (AutoModel where nothing better is known) with the values of `raw`.

    Raises: ModelError if `raw` describes another type of model, or values that the config class refuses.
    """
    transformers = import_transformers("this model")
    kind = raw.get("model_type")
    config_class = getattr(model_class, "config_class", None)
    if config_class is None and kind in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[kind]
    attention = attention_of(raw)
    if config_class is not None and kind != config_class.model_type:
        raw = raw.get(getattr(config_class, "base_config_key", None) or "") or {}  # one tower of a model of several
    if config_class is None or not raw:
        raise ModelError(f"{model_class.__name__} is no class for a config of type {kind!r}; name another class")
    values = safe_config({**raw, "dtype": dtype}, dtype)
    try:
        return config_class.from_dict(values, **attention)
    except Exception as error:  # whatever a constructor of theirs raises
        raise ModelError(f"{config_class.__name__} refuses the config ({reason(error)}); correct it") from error
