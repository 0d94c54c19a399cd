"""A saved network -> SpikingModel: the source is built again, captured and planned anew, and held against the file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch

from ._capture import capture
from ._mark import insert_sites
from ._model import SpikingModel
from ._plan import Plan, plan
from ._substitute import notes
from .calibration import Calibration
from .codecs.bundle import CONFIG, FRAMES, THRESHOLDS, WEIGHTS, read_config, read_thresholds, site_to_json
from .codecs.frame_file import read_frames
from .codecs.signature import call_from_json
from .errors import ConfigError, ModelError
from .recipes import Recipe
from .zoo import Source, build, load_checkpoint


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
    decided = replace(decided, notes=notes(decided, recipe))
    _check_sites(decided, config, directory)
    thresholds = read_thresholds(directory, [site.name for site in decided.sites])
    frames = read_frames(directory / FRAMES, decided.sites) if FRAMES in config["files"] else {}
    calibration = Calibration(
        thresholds,
        int(config["calibration"]["samples"]),
        recipe.site_levels,
        frames,
        recipe.operators.ranges if recipe.operators else {},
    )
    marked = insert_sites(captured, decided)
    return SpikingModel(module, captured, marked, decided, recipe, calibration, unfoldable=config["unfoldable"])


def _locate(path: str | Path, download: bool) -> Path:
    if Path(path).is_dir():
        return Path(path)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [CONFIG, WEIGHTS, THRESHOLDS, FRAMES]
        return Path(
            huggingface_hub.snapshot_download(str(path), local_files_only=not download, allow_patterns=patterns)
        )
    except (HFValidationError, OSError, ValueError) as error:
        where = "on the Hub, or it cannot be reached" if download else "in the local Hub cache"
        fetch = "" if download else f", or fetch it in Python: transpike.load({str(path)!r}, download=True)"
        raise ConfigError(
            f"{path} is not a folder, nor a repository {where}; name a folder that transpike convert wrote{fetch}"
        ) from error


def _module(config: Mapping[str, Any], directory: Path, model: torch.nn.Module | None) -> torch.nn.Module:
    source = Source.from_json(config["source"])
    if model is not None:
        module = copy.deepcopy(model).eval()
    elif source.kind in ("owner", "factory"):
        raise ModelError(
            f"{directory} was made from {source.name}, which only its owner can build; "
            "pass it: transpike.load(path, model=...), or --model"
        )
    else:
        module = build(source)
    _take_types(module, directory / WEIGHTS)
    load_checkpoint(module, directory / WEIGHTS)
    return module


def _take_types(module: torch.nn.Module, weights: Path) -> None:
    """Give every floating tensor the type it was saved in; those that are not saved go along where parameters do."""
    with safetensors.safe_open(weights, "pt") as file:
        saved = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    own = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name in saved}
    floating = {n: t for n, t in own.items() if t.is_floating_point() and saved[n].is_floating_point}
    parameters = [name for name, tensor in floating.items() if isinstance(tensor, torch.nn.Parameter)]
    if any(floating[name].dtype != saved[name] for name in parameters):
        module.to(saved[parameters[0]])
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in floating:
            tensor.data = tensor.data.to(saved[name])


def _check_sites(decided: Plan, config: Mapping[str, Any], directory: Path) -> None:
    found, saved = [site_to_json(site) for site in decided.sites], config["sites"]
    if found == saved:
        return
    names = {site["name"] for site in found} ^ {site["name"] for site in saved}
    difference = f"sites {', '.join(sorted(names)[:5])}" if names else "the shapes or the order of sites"
    raise ConfigError(
        f"the model does not fit {directory}: its plan differs in {difference}; "
        "use the model, and the versions, it was converted with"
    )
