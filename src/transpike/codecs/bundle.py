"""The saved form of a converted network: a folder of safetensors and JSON, specified in docs/format.md.

    config.json             what it is: source architecture, recipe, signature, sites; checksums of the other files
    model.safetensors       the source model's weights
    thresholds.safetensors  one float64 pair (positive, negative) per site

No calibration data, no pickle. Loading builds the source architecture again, loads the weights, captures and plans it
anew, and checks that the sites are the ones that were saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from ..errors import ConfigError
from ..files import write_atomically, write_json
from ..types import Site, Threshold
from ..zoo import describe
from .signature import call_to_json

if TYPE_CHECKING:
    from .._model import SpikingModel

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
            kept[name] = (
                value.detach().cpu().contiguous().clone() if not value.is_contiguous() else value.detach().cpu()
            )
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
        "sites": [site_to_json(site) for site in model.plan.sites],
        "unknown_operators": [{"op": u.op, "module": u.module, "node": u.node} for u in model.plan.unknown],
        "calibration": {"samples": model.calibration.samples, **(extra or {})},
        "files": {name: _sha256(directory / name) for name in (WEIGHTS, THRESHOLDS)},
    }


def site_to_json(site: Site) -> dict[str, Any]:
    return {"name": site.name, "kind": str(site.kind), "shape": list(site.shape)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(directory: Path) -> dict[str, Any]:
    """The config of a saved network, checked for format, version, keys and whole files."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{directory} holds no {CONFIG}; name a folder that transpike convert or save_pretrained wrote"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise ConfigError(f"{directory / CONFIG} is damaged: {error}; save the network again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(f"{directory} is not a saved spiking network (format {FORMAT}); convert the model first")
    if config.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{directory} has format version {config.get('format_version')}, this transpike reads {FORMAT_VERSION}; "
            "update transpike"
        )
    needed = {
        "source",
        "recipe",
        "inputs",
        "call",
        "batch_dim",
        "batch_size",
        "unfoldable",
        "sites",
        "calibration",
        "files",
    }
    if missing := sorted(needed - config.keys()):
        raise ConfigError(f"{directory / CONFIG} lacks {', '.join(missing)}; save the network again")
    for name in (WEIGHTS, THRESHOLDS):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory} lacks {name}; save the network again")
        if _sha256(directory / name) != config["files"].get(name):
            raise ConfigError(
                f"{directory / name} is not the file that was saved with this config (truncated or replaced); "
                "save the network again"
            )
    return config


def read_thresholds(directory: Path, names: Sequence[str]) -> dict[str, Threshold]:
    """The thresholds of the named sites. Raises ConfigError for a site without two finite numbers."""
    try:
        stored = safetensors.torch.load_file(directory / THRESHOLDS)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{directory / THRESHOLDS} is damaged: {error}; save the network again") from error
    for name in names:
        pair = stored.get(name)
        if pair is None or pair.shape != (2,) or not bool(torch.isfinite(pair).all()):
            raise ConfigError(
                f"{directory / THRESHOLDS} has no sound threshold for site {name}; save the network again"
            )
    return {name: Threshold(*map(float, stored[name])) for name in names}
