"""From a name to a module: `load_model` with its weights, `build` the bare architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from transpike.errors import ConfigError, ModelError
from transpike.zoo import hf_models, timm_models
from transpike.zoo.checkpoint import check_finite, load_checkpoint
from transpike.zoo.factory import call_factory
from transpike.zoo.hf_configs import find_folder
from transpike.zoo.source import Source, parse_spec


def load_model(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Source]:
    """Load the model that `spec` names, in evaluation mode on the CPU, and say where it came from.

    spec is "timm:NAME", "hf:FOLDER_OR_NAME", "MODULE:FACTORY" (imported with the working directory on the path and
    called with `options`) or "digits". Nothing is downloaded unless `pretrained`; "timm:NAME" with neither `pretrained`
    nor `checkpoint` has random weights. `checkpoint` is a safetensors file or folder, loaded strictly.

    Raises: ModelError, CheckpointError, ConfigError (arguments that exclude each other), MissingExtra.
    """
    kind, name = parse_spec(spec)
    _check_arguments(kind, spec, checkpoint=checkpoint, pretrained=pretrained, options=options)
    source = Source(kind, name, options or {})
    if kind == "timm":
        model = timm_models.create(name, source.options, pretrained=pretrained)
    elif kind == "hf":
        folder = find_folder(name, pretrained=pretrained, weights=checkpoint is None)
        model = hf_models.load(folder, source.options, with_weights=checkpoint is None)
        model._transpike_folder = str(folder)  # type: ignore[assignment]
        source = hf_models.source_of(model, name)
    elif kind == "factory":
        model = call_factory(name, source.options)
    else:
        from transpike.zoo.digits import load_model as load_digits_model

        model = load_digits_model()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    check_finite(model)
    model = model.to("cpu").eval()
    model._transpike_source = source  # type: ignore[assignment]
    return model, source


def build(source: Source) -> nn.Module:
    """The architecture of `source` in evaluation mode, with no weights loaded from anywhere.

    Raises: ModelError if it cannot be rebuilt from the source alone; MissingExtra.
    """
    if source.kind == "timm":
        return timm_models.create(source.name, source.options).eval()
    if source.kind == "hf":
        return hf_models.build(source.options).eval()
    if source.kind == "digits":
        from transpike.zoo.digits import build as build_digits

        return build_digits().eval().to(timm_models.torch_dtype(source.options.get("dtype", "float32")))
    raise ModelError(
        f"the model {source.name!r} is code of its owner, and code named in a file is never imported; "
        "build the module yourself and pass it: transpike.load(path, model=...)"
    )


def _check_arguments(
    kind: str, spec: str, *, checkpoint: str | Path | None, pretrained: bool, options: Mapping[str, Any] | None
) -> None:
    if kind == "timm" and pretrained and checkpoint is not None:
        raise ConfigError(f"{spec!r} takes either pretrained weights or a checkpoint ({checkpoint}), not both")
    if kind == "factory" and pretrained:
        raise ConfigError(f"{spec!r} loads its own weights, so pretrained has no meaning; pass it options instead")
    if kind == "digits" and options:
        raise ConfigError(f"the digits model takes no options, not {', '.join(map(repr, options))}; leave them out")
