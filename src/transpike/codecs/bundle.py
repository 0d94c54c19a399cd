"""The saved form of a converted network: a folder of safetensors and JSON, specified in docs/format.md.

    config.json             what it is: source architecture, recipe, signature, sites; checksums of the other files
    model.safetensors       the source model's weights
    thresholds.safetensors  one float64 pair (positive, negative) per site

No calibration data, no pickle. Loading builds the source architecture again, loads the weights, captures and plans it
anew, and checks that the sites are the ones that were saved.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .._calibrate import Calibration
from .._capture import Captured, capture
from .._mark import insert_sites
from .._model import SpikingModel
from .._plan import Plan, plan
from ..errors import ConfigError, ModelError
from ..files import write_atomically, write_json
from ..recipes import Recipe
from ..types import Threshold
from ..zoo import Source, build, describe, load_checkpoint
from .signature import call_from_json, call_to_json

FORMAT = "transpike-snn"
FORMAT_VERSION = 1
CONFIG, WEIGHTS, THRESHOLDS = "config.json", "model.safetensors", "thresholds.safetensors"


def save(model: SpikingModel, directory: Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write a converted network. `extra` JSON values (where the calibration samples came from) go into the config.

    Each file is whole or absent; the config comes last and holds the checksums of the others, so that a folder that was
    half overwritten does not load. Raises ConfigError when the folder cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"cannot save to {directory}: it is a file; name a folder")
    weights = _unique(model.source_module.state_dict())
    pairs = {name: torch.tensor(t.to_json(), dtype=torch.float64) for name, t in model.thresholds.items()}
    for name, tensors in ((WEIGHTS, weights), (THRESHOLDS, pairs)):
        write_atomically(directory / name, lambda path, tensors=tensors: _save_tensors(tensors, path))
    write_json(directory / CONFIG, _config(model, directory, extra))
    return directory


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk arrives as this
        raise OSError(str(error)) from error


def _unique(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Each tensor once: of tied weights the first name."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    kept = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            continue
        key = (value.data_ptr(), value.shape, value.stride())
        if value.numel() == 0 or key not in seen:
            seen.add(key)
            kept[name] = value.detach().cpu().contiguous().clone() if not value.is_contiguous() else value.detach().cpu()
    return kept


def _config(model: SpikingModel, directory: Path, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    from .. import __version__

    captured = model.captured
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "transpike_version": __version__,
        "torch_version": str(torch.__version__),
        "source": describe(model.source_module).to_json(),
        "recipe": model.recipe.to_json(),
        "inputs": [
            {"name": spec.name, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}
            for spec in captured.inputs
        ],
        "call": call_to_json(captured.structure),
        "batch_dim": captured.batch_dim,
        "batch_size": None if captured.free_batch else captured.batch_size,
        "unfoldable": model.unfoldable,
        "sites": [_site_to_json(site) for site in model.plan.sites],
        "unknown_operators": [{"op": u.op, "module": u.module, "node": u.node} for u in model.plan.unknown],
        "calibration": {"samples": model.calibration.samples, **(extra or {})},
        "files": {name: _sha256(directory / name) for name in (WEIGHTS, THRESHOLDS)},
    }


def _site_to_json(site: Any) -> dict[str, Any]:
    return {"name": site.name, "kind": str(site.kind), "shape": list(site.shape)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: str | Path, *, model: torch.nn.Module | None = None, download: bool = False) -> SpikingModel:
    """Load a converted network from a folder, or from the Hugging Face Hub by name.

    Arguments: model -- an instance of the source model, for networks whose architecture only its owner can build; it is
    copied and gets the saved weights. download -- allow fetching a Hub repository that is not in the local cache.
    Returns: a SpikingModel that gives the same outputs for the same inputs, bit for bit, on the same versions.
    Raises: ConfigError for a missing, damaged or foreign folder, ModelError when `model` is needed, CheckpointError
    when `model` has other tensors.
    """
    directory = _locate(path, download)
    config = read_config(directory)
    module = _module(config, directory, model)
    recipe = Recipe.from_json(config["recipe"])
    structure, leaves = call_from_json(config["call"], config["inputs"], config["batch_dim"], config["batch_size"])
    captured = capture(module, structure.call_inputs(leaves), batch_dim=config["batch_dim"])
    decided = plan(captured, recipe.policy)
    _check_sites(decided, config, directory)
    thresholds = _read_thresholds(directory, decided)
    calibration = Calibration(thresholds, int(config["calibration"]["samples"]))
    marked = insert_sites(captured, decided)
    return SpikingModel(module, captured, marked, decided, recipe, calibration, unfoldable=config["unfoldable"])


def _locate(path: str | Path, download: bool) -> Path:
    if Path(path).is_dir():
        return Path(path)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [CONFIG, WEIGHTS, THRESHOLDS]
        return Path(huggingface_hub.snapshot_download(str(path), local_files_only=not download, allow_patterns=patterns))
    except (HFValidationError, OSError, ValueError) as error:
        hint = "" if download else "; to fetch it from the Hub, pass download=True (--download)"
        raise ConfigError(f"{path} is not a folder, nor a repository in the local Hub cache{hint}") from error


def read_config(directory: Path) -> dict[str, Any]:
    """The config of a saved network, checked for format, version, keys and whole files."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{directory} holds no {CONFIG}; name a folder that transpike convert or save_pretrained wrote") from None
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise ConfigError(f"{directory / CONFIG} is damaged: {error}; save the network again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(f"{directory} is not a saved spiking network (format {FORMAT}); convert the model first")
    if config.get("format_version") != FORMAT_VERSION:
        raise ConfigError(f"{directory} has format version {config.get('format_version')}, this transpike reads {FORMAT_VERSION}; update transpike")
    needed = {"source", "recipe", "inputs", "call", "batch_dim", "batch_size", "unfoldable", "sites", "calibration", "files"}
    if missing := sorted(needed - config.keys()):
        raise ConfigError(f"{directory / CONFIG} lacks {', '.join(missing)}; save the network again")
    for name in (WEIGHTS, THRESHOLDS):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory} lacks {name}; save the network again")
        if _sha256(directory / name) != config["files"].get(name):
            raise ConfigError(f"{directory / name} is not the file that was saved with this config (truncated or replaced); save the network again")
    return config


def _module(config: Mapping[str, Any], directory: Path, model: torch.nn.Module | None) -> torch.nn.Module:
    source = Source.from_json(config["source"])
    if model is not None:
        module = copy.deepcopy(model).eval()
    elif source.kind in ("owner", "factory"):
        raise ModelError(f"{directory} was made from {source.name}, which only its owner can build; pass it: transpike.load(path, model=...)")
    else:
        module = build(source)
    with safetensors.safe_open(directory / WEIGHTS, "pt") as file:
        names = list(file.keys())
        dtype = file.get_tensor(names[0]).dtype if names else torch.float32
    if dtype.is_floating_point and any(p.dtype != dtype for p in module.parameters() if p.is_floating_point()):
        module = module.to(dtype)
    load_checkpoint(module, directory / WEIGHTS)
    return module


def _check_sites(decided: Plan, config: Mapping[str, Any], directory: Path) -> None:
    found, saved = [_site_to_json(site) for site in decided.sites], config["sites"]
    if found == saved:
        return
    names = {site["name"] for site in found} ^ {site["name"] for site in saved}
    difference = f"sites {', '.join(sorted(names)[:5])}" if names else "the shapes or the order of sites"
    raise ConfigError(f"the model does not fit {directory}: its plan differs in {difference}; use the model, and the versions, it was converted with")


def _read_thresholds(directory: Path, decided: Plan) -> dict[str, Threshold]:
    try:
        stored = safetensors.torch.load_file(directory / THRESHOLDS)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{directory / THRESHOLDS} is damaged: {error}") from error
    missing = [site.name for site in decided.sites if site.name not in stored]
    if missing:
        raise ConfigError(f"{directory / THRESHOLDS} has no threshold for site {missing[0]}; save the network again")
    return {site.name: Threshold(*map(float, stored[site.name])) for site in decided.sites}


__all__ = ["FORMAT_VERSION", "Captured", "load", "read_config", "save"]
