"""The saved form of a converted network: a folder of safetensors and JSON, specified in docs/format.md.

    config.json             what it is: source architecture, recipe, signature, sites; checksums of the other files
    model.safetensors       the source model's weights
    thresholds.safetensors  one float64 pair (positive, negative) per site
    frames.safetensors      only where the neurons of a site differ: tensors of `neurons.Frame`

No calibration data, no pickle. Loading builds the source architecture again, loads the weights, captures and plans it
anew, and checks that the sites are the ones that were saved.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from ..errors import ConfigError
from ..files import put_json, write_together
from ..types import Site, Threshold
from ..zoo import describe
from ..zoo.source import reason
from .frame_file import frame_tensors
from .signature import call_to_json

if TYPE_CHECKING:
    from .._model import SpikingModel

FORMAT = "transpike-snn"
FORMAT_VERSION = 2  # of networks with frames; without them 1, which older versions read
CONFIG, WEIGHTS, THRESHOLDS = "config.json", "model.safetensors", "thresholds.safetensors"
FRAMES = "frames.safetensors"
TYPES: dict[str, tuple[type, ...]] = {  # what loading reads
    "source": (dict,),
    "recipe": (dict,),
    "inputs": (list,),
    "call": (dict,),
    "batch_dim": (int,),
    "batch_size": (int, NoneType),
    "unfoldable": (str,),
    "sites": (list,),
    "calibration": (dict,),
    "files": (dict,),
}


def save(model: SpikingModel, directory: Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write a converted network. `extra` JSON values (where the calibration samples came from) go into the config.

    All files are written whole before the first is put in place, so what was saved there before survives an error; the
    config holds the checksums of the others, so that a folder half put in place (a crash) does not load. Raises
    ConfigError when the folder cannot be written, or the model or `extra` holds what the format cannot.
    """
    model.require_together("saving")
    if model.unsaved:
        raise ConfigError(f"cannot save this network to {directory}: {model.unsaved}")
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"cannot save to {directory}: it is a file; name a folder")
    config = _config(model, extra)
    pairs = {name: torch.tensor(t.to_json(), dtype=torch.float64) for name, t in model.thresholds.items()}
    tensors = {WEIGHTS: _unique(model.source_module.state_dict()), THRESHOLDS: pairs}
    if model.calibration.frames:
        tensors[FRAMES] = frame_tensors(model.calibration.frames)

    def put_tensors(path: Path, name: str) -> None:
        _save_tensors(tensors[name], path, called=directory / name)
        config["files"][name] = _sha256(path)

    writers = {directory / name: partial(put_tensors, name=name) for name in tensors}
    put_config = partial(put_json, data=config, called=directory / CONFIG)  # last: then it has the checksums
    write_together({**writers, directory / CONFIG: put_config})
    if FRAMES not in tensors:  # of a network that was saved here before; the config no longer speaks of it
        (directory / FRAMES).unlink(missing_ok=True)
    return directory


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, *, called: Path) -> None:
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk arrives as this
        raise OSError(str(error)) from error
    except (KeyError, RuntimeError, ValueError) as error:  # such as complex128
        raise ConfigError(
            f"{called} cannot hold a tensor of this model: {reason(error)}; nothing was written"
        ) from error


def _unique(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Each tensor once: of tied weights the first name. No two share memory, which safetensors would refuse."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    storages: set[int] = set()
    kept = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            continue
        key = (value.data_ptr(), value.shape, value.stride())
        if value.numel() == 0 or key not in seen:
            seen.add(key)
            shared = value.untyped_storage().data_ptr() in storages
            storages.add(value.untyped_storage().data_ptr())
            tensor = value.detach().cpu().contiguous()
            kept[name] = tensor.clone() if shared else tensor
    return kept


def _config(model: SpikingModel, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    from .. import __version__

    captured = model.captured
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION if model.calibration.frames else 1,
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
        "files": {},
    }


def site_to_json(site: Site) -> dict[str, Any]:
    return {"name": site.name, "kind": str(site.kind), "shape": list(site.shape)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(directory: Path) -> dict[str, Any]:
    """The config of a saved network, checked for format, version, keys, types and whole files.

    Raises ConfigError naming the file and what is wrong with it.
    """
    config = _parsed(directory)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(f"{directory} is not a saved spiking network (format {FORMAT}); convert the model first")
    if config.get("format_version") not in range(1, FORMAT_VERSION + 1):
        raise ConfigError(
            f"{directory} has format version {config.get('format_version')!r:.40}, this transpike reads "
            f"1 to {FORMAT_VERSION}; update transpike"
        )
    if missing := sorted(TYPES.keys() - config.keys()):
        raise ConfigError(f"{directory / CONFIG} lacks {', '.join(missing)}; save the network again")
    if wrong := _wrong(config):
        raise ConfigError(f"{directory / CONFIG} is damaged: {wrong}; save the network again")
    for name in (WEIGHTS, THRESHOLDS, *([FRAMES] if FRAMES in config["files"] else [])):
        _check_tensors(directory, name, config["files"].get(name))
    return config


def _parsed(directory: Path) -> Any:
    try:
        text = (directory / CONFIG).read_text(encoding="utf-8")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise ConfigError(
            f"{directory} holds no {CONFIG}; name a folder that transpike convert or save_pretrained wrote"
        ) from None
    except (OSError, RecursionError, ValueError) as error:
        raise ConfigError(f"{directory / CONFIG} is damaged: {reason(error)}; save the network again") from error


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.40} is not a finite number")
    return value


def _wrong(config: Mapping[str, Any]) -> str:
    """What in a config is of another type than it was written with, or ""."""
    samples = config["calibration"].get("samples") if isinstance(config["calibration"], dict) else None
    for key, types in TYPES.items():
        if type(config[key]) not in types:  # exactly: True is an int, too
            return f"{key} cannot be {config[key]!r:.40}"
    if config["batch_size"] is not None and config["batch_size"] < 1:
        return f"batch_size cannot be {config['batch_size']}"
    if type(samples) is not int or samples < 0:
        return f"calibration.samples cannot be {samples!r:.40}"
    for index, site in enumerate(config["sites"]):
        if not isinstance(site, dict) or not isinstance(site.get("name"), str):
            return f"site {index} has no name"
    return ""


def _check_tensors(directory: Path, name: str, checksum: Any) -> None:
    path = directory / name
    if not path.is_file():
        raise ConfigError(f"{directory} lacks {name}; save the network again")
    try:
        if _sha256(path) != checksum:
            raise ConfigError(
                f"{path} is not the file that was saved with this config (truncated or replaced); "
                "save the network again"
            )
        with safetensors.safe_open(path, "pt"):  # reads, and checks, its header
            pass
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} is damaged: {reason(error)}; save the network again") from error


def read_thresholds(directory: Path, names: Sequence[str]) -> dict[str, Threshold]:
    """The thresholds of the named sites. Raises ConfigError for a site without two finite float64, or a strange one."""
    path = directory / THRESHOLDS
    try:
        stored = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {reason(error)}; save the network again") from error
    for name in names:
        pair = stored.get(name)
        sound = pair is not None and pair.shape == (2,) and pair.dtype == torch.float64
        if not sound or not bool(torch.isfinite(pair).all()):
            raise ConfigError(f"{path} has no sound threshold for site {name}; save the network again")
    if strange := sorted(stored.keys() - set(names)):
        raise ConfigError(f"{path} has a threshold for {strange[0]!r:.80}, which is no site; save the network again")
    return {name: Threshold(*map(float, stored[name])) for name in names}
