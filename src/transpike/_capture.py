"""module, example inputs -> Captured: one flat graph of ATen operators, exact, with a free batch size.

torch.export (non-strict, before decomposition) does the capturing. Here its graph is brought to the form the planner
reads: tensors in, one tensor out; attention split; no in-place operator on a signal; every node knows its module path
and where its batch is.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
import torch.fx
import torch.utils._pytree as pytree

from ._normalise import locate_batch, module_path, normalise
from .errors import CaptureError, DataError
from .ops.shape import KEEPS_ALL

PRIMARY_OUTPUTS = ("logits", "prediction_logits", "start_logits", "image_embeds", "last_hidden_state")


@dataclass(frozen=True)
class InputSpec:
    """One tensor the model takes: `shape` has None along the batch (tensors without one have none)."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    @property
    def batch_axis(self) -> int | None:
        return self.shape.index(None) if None in self.shape else None


@dataclass(frozen=True)
class Structure:
    """How tensors and fixed values make up the arguments of a call: `fixed` has None where a tensor goes."""

    spec: pytree.TreeSpec
    fixed: tuple[Any, ...]
    tensors: tuple[int, ...]

    def call(self, leaves: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        flat = list(self.fixed)
        for position, leaf in zip(self.tensors, leaves, strict=True):
            flat[position] = leaf
        return pytree.tree_unflatten(flat, self.spec)

    def call_inputs(self, leaves: Any) -> Any:
        """The batch that `call_of` turns into this call."""
        args, kwargs = self.call(leaves)
        return (*args, kwargs) if kwargs else args

    def __str__(self) -> str:
        args, kwargs = pytree.tree_unflatten([0] * self.spec.num_leaves, self.spec)
        return " and ".join(filter(None, (f"{len(args)} positional" if args else "", ", ".join(kwargs)))) or "nothing"


@dataclass(frozen=True)
class Captured:
    """The graph of a model. `inputs` are the tensor leaves of its arguments in order; `free_batch` says whether any
    batch size runs (else only `batch_size`); `structure` rebuilds the arguments."""

    graph: torch.fx.GraphModule
    inputs: tuple[InputSpec, ...]
    structure: Structure
    free_batch: bool
    batch_size: int
    batch_dim: int = 0

    def cast(self, module: torch.nn.Module) -> Captured:
        """With floating inputs in the dtype of the module's weights."""
        dtype = _dtype(module)
        cast = (replace(spec, dtype=dtype) if spec.dtype.is_floating_point else spec for spec in self.inputs)
        return replace(self, inputs=tuple(cast))

    @cached_property
    def table_rows(self) -> tuple[int | None, ...]:
        """Of each input, how many rows the table has that it picks from, such as the vocabulary; None of others."""
        placeholders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        sizes = [[attrgetter(table)(self.graph).shape[0] for table in _tables(node)] for node in placeholders]
        return tuple(min(found, default=None) for found in sizes)

    def flatten(self, inputs: Any) -> tuple[torch.Tensor, ...]:
        """The tensors of a call, checked against what was captured; floating ones are cast to the model's dtype.

        Raises DataError on any difference in structure, shape or kind of number, and for ids that a table lacks.
        """
        leaves, structure = _leaves(inputs)
        if structure != self.structure:
            raise DataError(
                f"the model was captured with inputs {self.structure}, but this batch has {structure};"
                " pass the same tensors under the same names (labels are not model inputs)"
            )
        batch = None
        for spec, leaf, rows in zip(self.inputs, leaves, self.table_rows, strict=True):
            axis = spec.batch_axis
            said = spec.name if spec.name.startswith("input ") else f"input {spec.name}"
            expected = tuple(spec.shape)
            actual = tuple(None if i == axis else size for i, size in enumerate(leaf.shape))
            if actual != expected:
                wanted = ", ".join("batch" if size is None else str(size) for size in expected)
                raise DataError(f"{said} has shape {tuple(leaf.shape)}, but the model takes ({wanted})")
            if _kind(leaf.dtype) != _kind(spec.dtype):
                raise DataError(f"{said} is {leaf.dtype}, but the model takes {spec.dtype}")
            if rows is not None and len(wrong := ((leaf < 0) | (leaf >= rows)).nonzero()):
                first = tuple(wrong[0].tolist())
                where = "" if axis is None else f" of sample {first[axis]} of the batch"
                raise DataError(
                    f"{said}{where} holds the id {int(leaf[first])}, but the model's table has {rows} rows "
                    f"(0..{rows - 1}); check that tokenizer and model belong together"
                )
            if axis is not None:
                batch = leaf.shape[axis] if batch is None else batch
                if leaf.shape[axis] != batch or batch == 0:
                    raise DataError(f"{said} has a batch of {leaf.shape[axis]}, the others have {batch}")
        if not self.free_batch and batch is not None and batch != self.batch_size:
            raise DataError(f"this model was captured for a batch of {self.batch_size} only, but got {batch}")
        return tuple(_cast(leaf, spec.dtype) for leaf, spec in zip(leaves, self.inputs, strict=True))


def _tables(node: torch.fx.Node) -> Iterator[str]:
    """The tables, by name, from which `node` picks rows as it is or rearranged."""
    for user in node.users:
        if user.target is torch.ops.aten.embedding.default and user.args[1] is node and user.args[0].op == "get_attr":
            yield user.args[0].target
        elif user.target in KEEPS_ALL:
            yield from _tables(user)


def _leaves(inputs: Any) -> tuple[tuple[torch.Tensor, ...], Structure]:
    flat, spec = pytree.tree_flatten(call_of(inputs))
    tensors = tuple(i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor))
    fixed = tuple(None if i in tensors else leaf for i, leaf in enumerate(flat))
    bad = sorted({type(leaf).__name__ for leaf in fixed if not isinstance(leaf, (bool, int, float, str, type(None)))})
    if bad:
        raise DataError(
            f"model inputs must be tensors or plain values, but found {', '.join(bad)}; convert them to tensors"
        )
    return tuple(flat[i] for i in tensors), Structure(spec, fixed, tensors)


def call_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one batch: a tensor, a tuple of positional inputs (a dict at its end holds
    keyword inputs, as in torch.onnx.export), or a dict of keyword inputs."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), {name: inputs[name] for name in sorted(inputs)}
    if isinstance(inputs, (tuple, list)):
        last = inputs[-1] if inputs else None
        return (tuple(inputs[:-1]), call_of(last)[1]) if isinstance(last, Mapping) else (tuple(inputs), {})
    raise DataError(f"a batch must be a tensor, a tuple or a dict of tensors, not {type(inputs).__name__}")


class _Entry(torch.nn.Module):
    """The model as a function of its tensor leaves alone, returning its primary output."""

    def __init__(self, model: torch.nn.Module, structure: Structure, fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.structure = structure
        self.fixed = dict(fixed)

    def forward(self, *leaves: torch.Tensor) -> torch.Tensor:
        args, kwargs = self.structure.call(leaves)
        return primary(self.model(*args, **{**self.fixed, **kwargs}))


def primary(output: Any) -> torch.Tensor:
    """The tensor a user means by "the output": the tensor itself, `logits`, `last_hidden_state`, or the first one."""
    if isinstance(output, torch.Tensor):
        return output
    for name in PRIMARY_OUTPUTS:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, torch.Tensor):
            return value
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            return leaf
    raise CaptureError(f"the model returns {type(output).__name__}, which holds no tensor")


def fixed_arguments(model: torch.nn.Module) -> dict[str, Any]:
    """Arguments that keep a Hugging Face model to one plain forward pass: no cache, where its forward has one."""
    config = getattr(model, "config", None)
    caches = getattr(config, "use_cache", False) and hasattr(config, "to_dict")
    taken = inspect.signature(model.forward).parameters if caches else {}
    takes = "use_cache" in taken or any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    return {"use_cache": False} if takes else {}


def capture(model: torch.nn.Module, example: Any, *, batch_dim: int = 0) -> Captured:
    """Capture `model` as called on `example`, with the batch along `batch_dim` left free.

    Arguments: example -- a tensor, a tuple of positional inputs or a dict of keyword inputs; only shapes matter.
    batch_dim -- where the first input has its batch; other inputs have it there or, if their size differs there, in the
    first dimension of that size, and without one they are taken as unbatched.
    Raises: CaptureError with the reason torch.export gives; DataError for unusable examples.
    The module is not changed.
    """
    leaves, structure = _leaves(example)
    if not leaves:
        raise DataError("the example holds no tensor")
    leaves = tuple(_cast(leaf, _dtype(model)).to(_device(model)) for leaf in leaves)
    if leaves[0].dim() <= batch_dim:
        raise DataError(
            f"the first input has shape {tuple(leaves[0].shape)}, which has no dimension {batch_dim} for the batch"
        )
    batch = leaves[0].shape[batch_dim]
    if batch == 0:
        raise DataError("the first batch is empty; pass at least one sample")
    axes = [_find_batch(leaf, batch, batch_dim) for leaf in leaves]
    if any(parameter.requires_grad for parameter in model.parameters()) and model.training:
        raise CaptureError("the model is in training mode; call model.eval() first")
    pair = tuple(_two(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True))
    entry = _Entry(model, structure, fixed_arguments(model))
    program, free = _export(entry, pair, axes)
    if not free:
        program, _ = _export(entry, leaves, [None] * len(leaves))
    graph = program.module()
    normalise(graph)
    if free:
        locate_batch(graph, axes)
    names = _names(structure)
    specs = tuple(
        InputSpec(name, tuple(None if i == axis else size for i, size in enumerate(leaf.shape)), leaf.dtype)
        for name, leaf, axis in zip(names, leaves, axes, strict=True)
    )
    return Captured(graph, specs, structure, free, batch, batch_dim)


def _dtype(model: torch.nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _device(model: torch.nn.Module) -> torch.device | None:
    """Where the model reads its inputs; None where that cannot be told: no weights, or weights kept elsewhere."""
    found = next((parameter.device for parameter in model.parameters()), None)
    return None if found is None or found.type == "meta" else found


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
    """Operators take any of one kind: floating point, truth values, whole numbers."""
    return dtype.is_floating_point, dtype is torch.bool


def _cast(leaf: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return leaf.to(dtype) if leaf.is_floating_point() else leaf


def _find_batch(leaf: torch.Tensor, batch: int, batch_dim: int) -> int | None:
    if leaf.dim() > batch_dim and leaf.shape[batch_dim] == batch:
        return batch_dim
    return next((axis for axis, size in enumerate(leaf.shape) if size == batch), None)


def _names(structure: Structure) -> list[str]:
    call = pytree.tree_unflatten(list(structure.fixed), structure.spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(call, is_leaf=lambda leaf: leaf is None)[0]]
    return [_name(paths[position]) for position in structure.tensors]


def _name(path: Any) -> str:
    kind, *rest = (getattr(key, "key", getattr(key, "idx", None)) for key in path)
    return ".".join(map(str, rest)) if kind == 1 else f"input {rest[0]}"


def _two(leaf: torch.Tensor, axis: int | None) -> torch.Tensor:
    """A batch of two, since torch.export takes a size of 1 for a constant."""
    if axis is None or leaf.shape[axis] == 2:
        return leaf
    first = leaf.narrow(axis, 0, 1)
    return torch.cat([first, leaf.narrow(axis, min(1, leaf.shape[axis] - 1), 1)], dim=axis)


def _export(entry: _Entry, leaves: tuple[torch.Tensor, ...], axes: list[int | None]) -> tuple[Any, bool]:
    """Export with a free batch; when the model pins it, say so with free = False."""
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple(None if axis is None else {axis: batch} for axis in axes),)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet_logs():
            warnings.simplefilter("ignore")
            return torch.export.export(entry, leaves, dynamic_shapes=shapes, strict=False), True
    except torch._dynamo.exc.UserError as error:
        if any(axis is not None for axis in axes) and "onstraint" in str(error):
            return None, False
        raise _explain(error) from error
    except Exception as error:
        raise _explain(error) from error


def _explain(error: Exception) -> CaptureError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if isinstance(error, TypeError) and "positional argument" in first:
        return CaptureError(
            f"the model cannot be called on this batch ({first}); a label in the batch is not a model input"
        )
    return CaptureError(f"torch.export could not capture the model: {type(error).__name__}: {first[:300]}")


@contextlib.contextmanager
def _quiet_logs():
    import logging

    loggers = [
        logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["Captured", "InputSpec", "call_of", "capture", "module_path", "primary"]
