"""How a model is called, as JSON: tensors by position, fixed values as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from .._capture import Structure
from ..errors import ConfigError


class _Slot(int):
    """Stands for the tensor leaf of that number while arguments are rebuilt."""


def call_to_json(structure: Structure) -> dict[str, Any]:
    """{"args": [...], "kwargs": {...}} with {"tensor": i} where tensor i goes."""
    args, kwargs = structure.call([_Slot(i) for i in range(len(structure.tensors))])
    return {
        "args": [_encode(value) for value in args],
        "kwargs": {name: _encode(value) for name, value in kwargs.items()},
    }


def _encode(value: Any) -> Any:
    if isinstance(value, _Slot):
        return {"tensor": int(value)}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _encode(item) for key, item in value.items()}}
    if isinstance(value, (bool, int, float, str, type(None))):
        return {"value": value}
    raise ConfigError(f"an argument of type {type(value).__name__} cannot be saved; fix it in the model instead")


def call_from_json(
    call: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], batch_dim: int, batch_size: int | None
) -> tuple[Structure, list[torch.Tensor]]:
    """The structure of a call and example tensors of the saved shapes (only their shapes matter)."""
    try:
        leaves = [_example(entry, batch_size) for entry in inputs]
        args = tuple(_decode(value, leaves) for value in call["args"])
        kwargs = {name: _decode(value, leaves) for name, value in call["kwargs"].items()}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"the saved signature is damaged ({type(error).__name__}: {error}); save the network again"
        ) from error
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = tuple(i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor))
    return Structure(spec, tuple(None if i in tensors else leaf for i, leaf in enumerate(flat)), tensors), leaves


def _example(entry: Mapping[str, Any], batch_size: int | None) -> torch.Tensor:
    shape = [(batch_size or 2) if size is None else int(size) for size in entry["shape"]]
    return torch.zeros(shape, dtype=getattr(torch, entry["dtype"]))


def _decode(value: Mapping[str, Any], leaves: list[torch.Tensor]) -> Any:
    if "tensor" in value:
        return leaves[value["tensor"]]
    if "list" in value:
        return [_decode(item, leaves) for item in value["list"]]
    if "dict" in value:
        return {key: _decode(item, leaves) for key, item in value["dict"].items()}
    return value["value"]
