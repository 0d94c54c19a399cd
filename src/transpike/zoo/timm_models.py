"""timm: names to architectures. (Not called timm.py: that would read like the package it imports.)"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from transpike.errors import MissingExtra, ModelError
from transpike.zoo.source import reason

# Arguments of create_model that read files or the network: never an option, for options also come from files.
READING_OPTIONS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "checkpoint_path", "cache_dir"}
)


def create(name: str, options: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """`timm.create_model(name, **options)`; options["dtype"] names a floating-point type, such as "bfloat16".

    Raises: ModelError if timm has no such model, or cannot build it with these options; MissingExtra.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "vision", f"the model timm:{name}") from error
    if ":" in name or not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has the names"
        raise ModelError(f"timm {timm.__version__} has no model {name!r}; {hint}")
    if reading := sorted(READING_OPTIONS & set(options)):
        raise ModelError(f"timm:{name} cannot take the option {reading[0]!r}; use pretrained=True or checkpoint=...")
    arguments = dict(options)
    dtype = torch_dtype(arguments.pop("dtype", "float32"))
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # whatever a constructor of theirs raises: names, sizes, the network
        doing = "download or build" if pretrained else "build"
        raise ModelError(f"timm could not {doing} {name} with options {dict(options)}: {reason(error)}") from error
    return model if dtype is torch.float32 else model.to(dtype)


def torch_dtype(name: Any) -> torch.dtype:
    """The floating-point type of that name.

    Raises: ModelError if there is none.
    """
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"{name!r} is not a floating-point type; use float32, float64, bfloat16 or float16")
    return dtype
