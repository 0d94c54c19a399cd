"""How a model is called, as JSON: tensors by position, fixed values as they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from .._capture import Structure
from ..errors import ConfigError
from ..zoo.source import reason


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
    if type(value) in (list, tuple):  # exactly: a named tuple would come back as another type
        return {type(value).__name__: [_encode(item) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if _is_plain(value):
        return {"value": value}
    what = repr(value) if isinstance(value, float) else f"of type {type(value).__name__}"
    raise ConfigError(f"an argument {what} cannot be saved; fix it in the model instead")


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def call_from_json(
    call: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], batch_dim: int, batch_size: int | None
) -> tuple[Structure, list[torch.Tensor]]:
    """The structure of a call and example tensors of the saved shapes (only their shapes matter).

    Raises ConfigError when they do not make a call.
    """
    try:
        leaves = _examples(inputs, batch_size)
        args = tuple(_decode(value, leaves) for value in call["args"])
        kwargs = {name: _decode(value, leaves) for name, value in call["kwargs"].items()}
        flat, spec = pytree.tree_flatten((args, kwargs))
        tensors = tuple(i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor))
        if [id(flat[i]) for i in tensors] != [id(leaf) for leaf in leaves]:
            raise ValueError("call does not take every tensor of inputs once, in order")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"the saved signature is damaged ({reason(error)}); save the network again") from error
    return Structure(spec, tuple(None if i in tensors else leaf for i, leaf in enumerate(flat)), tensors), leaves


def _examples(inputs: Sequence[Mapping[str, Any]], batch_size: int | None) -> list[torch.Tensor]:
    # Capturing finds the batch by its size, so a free one must not look like any other dimension.
    taken = {size for entry in inputs for size in entry["shape"]}
    batch = batch_size or next(size for size in itertools.count(2) if size not in taken)
    shapes = [[batch if size is None else size for size in entry["shape"]] for entry in inputs]
    return [
        torch.zeros(shape, dtype=getattr(torch, entry["dtype"])) for shape, entry in zip(shapes, inputs, strict=True)
    ]


def _decode(value: Mapping[str, Any], leaves: list[torch.Tensor]) -> Any:
    if "tensor" in value:
        return leaves[value["tensor"]]
    if "list" in value:
        return [_decode(item, leaves) for item in value["list"]]
    if "tuple" in value:
        return tuple(_decode(item, leaves) for item in value["tuple"])
    if "dict" in value:
        return {key: _decode(item, leaves) for key, item in value["dict"].items()}
    if not _is_plain(value["value"]):
        raise ValueError(f"{value['value']!r} is no plain value")
    return value["value"]
