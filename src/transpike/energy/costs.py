"""What one dense evaluation of an operator computes: one row per ATen operator, unknown = uncounted.

A rule maps a call (sizes for a batch of one) to counts; it never looks at values. Operators that only move, create or
select values, and one-bit logic, are free. To count another operator, add its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
import torch.fx

from ..measure import dense_operations
from ..ops import FACTORS, factors
from ..ops.affine import CHOICES
from ..ops.multiply import ELEMENTWISE
from ..ops.rule import argument
from ..ops.shape import KEEPS_ALL, SELECTS
from .kinds import Counts, Kind
from .shapes import elements, is_constant, sizes

aten = torch.ops.aten
Rule = Callable[[torch.fx.Node], Counts]


def _each(**counts: float) -> Rule:
    """So many operations per element of the result."""
    return lambda node: {Kind(kind): count * elements(node) for kind, count in counts.items()}


def _reduces(result: dict[str, float] | None = None, **counts: float) -> Rule:
    """So many operations per element of the first operand, and `result` per element of the result."""

    def rule(node: torch.fx.Node) -> Counts:
        found = {Kind(kind): count * elements(node.args[0]) for kind, count in counts.items()}
        for kind, count in (result or {}).items():
            found[Kind(kind)] = found.get(Kind(kind), 0) + count * elements(node)
        return found

    return rule


def _free(node: torch.fx.Node) -> Counts:
    return {}


# --- layers ----------------------------------------------------------------------------------------------------------


def layer(node: torch.fx.Node) -> Counts:
    """Multiply-accumulates as FLOP counters count them (halved), and an add per result for a bias."""
    left, right = (torch.empty(sizes(factor), device="meta") for factor in factors(node))  # type: ignore[union-attr]
    dense = dense_operations(node, (left, right), torch.empty(sizes(node), device="meta"))
    read = {value for value in node.all_input_nodes if value not in factors(node)}  # type: ignore[operator]
    return {Kind.MULTIPLY_ACCUMULATE: dense, Kind.ADD: elements(node) if read else 0}


# --- elementwise -----------------------------------------------------------------------------------------------------


def quotient(node: torch.fx.Node) -> Counts:
    """A constant divisor is a reciprocal kept ready."""
    constant = is_constant(argument(node, 1, "other"))
    return {Kind.MULTIPLY if constant else Kind.DIVISION: elements(node)}


def gelu(node: torch.fx.Node) -> Counts:
    if argument(node, 1, "approximate", "none") == "tanh":
        return _each(multiply=6, add=4, exponential=1, division=1)(node)
    return _each(multiply=3, add=1, error_function=1)(node)


def power(node: torch.fx.Node) -> Counts:
    exponent = argument(node, 1, "exponent")
    known: dict[Any, dict[str, float]] = {
        0.5: {"square_root": 1},
        -0.5: {"square_root": 1, "division": 1},
        -1: {"division": 1},
    }
    if isinstance(exponent, (int, float)) and exponent in (1, 2, 3, 4):
        known[exponent] = {"multiply": (0, 1, 2, 2)[int(exponent) - 1]}
    one = exponent if isinstance(exponent, (int, float)) else None
    return _each(**known.get(one, {"exponential": 2, "multiply": 1}))(node)


# --- along an axis ---------------------------------------------------------------------------------------------------


def _rows(node: torch.fx.Node, dim: int) -> float:
    shape = sizes(node)
    return elements(node) / max(shape[dim], 1) if shape else 1


def softmax(node: torch.fx.Node) -> Counts:
    """Maximum, subtraction, exponential, sum, one division a row, multiplication."""
    rows = _rows(node, int(argument(node, 1, "dim")))  # type: ignore[call-overload]
    return {**_each(compare=1, add=2, exponential=1, multiply=1)(node), Kind.DIVISION: rows}


def log_softmax(node: torch.fx.Node) -> Counts:
    counts = _each(compare=1, add=3, exponential=1)(node)
    counts[Kind.EXPONENTIAL] += _rows(node, int(argument(node, 1, "dim")))  # type: ignore[call-overload]
    return counts


def _normalised(
    groups: Callable[[torch.fx.Node], float], scale: int = 2, shift: int = 3, *, centred: bool = True
) -> Rule:
    """Two passes over the elements, a root and a division per group; `scale`, `shift`: positions of the parameters."""

    def rule(node: torch.fx.Node) -> Counts:
        count, many = elements(node), groups(node)
        scaled = argument(node, scale, "weight") is not None
        shifted = centred and argument(node, shift, "bias") is not None
        adds = (3 if centred else 1) * count + shifted * count + many
        multiplies = (2 + scaled) * count + (2 if centred else 1) * many
        return {Kind.ADD: adds, Kind.MULTIPLY: multiplies, Kind.SQUARE_ROOT: many, Kind.DIVISION: many}

    return rule


def _over_shape(node: torch.fx.Node) -> float:
    return elements(node) / prod(node.args[1])  # type: ignore[arg-type]


def _over_groups(node: torch.fx.Node) -> float:
    return sizes(node)[0] * int(node.args[1])  # type: ignore[call-overload]


def _over_channels(node: torch.fx.Node) -> float:
    return prod(sizes(node)[:2])


def _pool(kind: str, result: dict[str, float] | None = None) -> Rule:
    """So many of `kind` per result as the window has places."""

    def rule(node: torch.fx.Node) -> Counts:
        window = node.args[1]
        kernel = prod(window) if isinstance(window, (list, tuple)) else int(window)  # type: ignore[call-overload]
        if isinstance(window, (list, tuple)) and len(window) == 1 and "2d" in str(node.target):
            kernel = kernel**2
        return _each(**{kind: kernel, **(result or {})})(node)

    return rule


# --- the table -------------------------------------------------------------------------------------------------------


def _rowwise(ops: Iterable[Any], rule: Rule) -> dict[Any, Rule]:
    return dict.fromkeys((op for op in ops if op is not None), rule)


_COMPARISONS = [
    getattr(getattr(aten, name), overload)
    for name in ("gt", "ge", "lt", "le", "eq", "ne")
    for overload in ("Scalar", "Tensor")
]
_LOGIC = (aten.logical_not.default, aten.logical_and.default, aten.logical_or.default, aten.bitwise_not.default,
          aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.__and__.Tensor, aten.__or__.Tensor)  # fmt: skip
_CREATES = (aten.arange.default, aten.arange.start, aten.ones.default, aten.zeros.default, aten.zeros_like.default,
            aten.ones_like.default, aten.full.default, aten.full_like.default, aten.embedding.default)  # fmt: skip

COSTS: dict[Any, Rule] = {
    **_rowwise((*KEEPS_ALL, *SELECTS, *CHOICES, *_LOGIC, *_CREATES), _free),
    **_rowwise((op for op in FACTORS if op not in ELEMENTWISE), layer),
    aten.einsum.default: layer,
    **_rowwise((aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar), _each(add=1)),
    **_rowwise((aten.neg.default, aten.abs.default), _free),  # the sign bit
    aten.diff.default: _each(add=1),
    **_rowwise((aten.mul.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.square.default), _each(multiply=1)),
    aten.div.Tensor: quotient,
    aten.reciprocal.default: _each(division=1),
    aten.sqrt.default: _each(square_root=1),
    aten.rsqrt.default: _each(square_root=1, division=1),
    **_rowwise((aten.exp.default, aten.log.default, aten.sin.default, aten.cos.default), _each(exponential=1)),
    aten.erf.default: _each(error_function=1),
    **_rowwise((aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar), power),
    **_rowwise(_COMPARISONS, _each(compare=1)),
    **_rowwise((aten.relu.default, aten.clamp_min.default, aten.clamp_max.default), _each(compare=1)),
    **_rowwise((aten.maximum.default, aten.minimum.default, aten.isinf.default, aten.isnan.default), _each(compare=1)),
    **_rowwise((aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor), _each(compare=2)),
    aten.nan_to_num.default: _each(compare=3),
    **_rowwise((aten.leaky_relu.default, aten.prelu.default), _each(compare=1, multiply=1)),
    **_rowwise((aten.elu.default, aten.celu.default), _each(compare=1, exponential=1, add=1, multiply=1)),
    aten.selu.default: _each(compare=1, exponential=1, add=1, multiply=2),
    aten.gelu.default: gelu,
    aten.sigmoid.default: _each(exponential=1, add=1, division=1),
    aten.silu.default: _each(exponential=1, add=1, division=1, multiply=1),
    aten.glu.default: _each(exponential=1, add=1, division=1, multiply=1),
    aten.tanh.default: _each(exponential=1, add=2, division=1),
    aten.softplus.default: _each(compare=1, exponential=2, add=1),
    aten.mish.default: _each(exponential=3, add=3, division=1, multiply=1),
    aten.hardsigmoid.default: _each(add=1, compare=2, multiply=1),
    aten.hardswish.default: _each(add=1, compare=2, multiply=2),
    aten.batch_norm.default: _each(multiply=1, add=1),  # with stored statistics: one scale, one shift
    **_rowwise((aten.softmax.int, aten._softmax.default, aten._safe_softmax.default), softmax),
    aten.log_softmax.int: log_softmax,
    aten.layer_norm.default: _normalised(_over_shape),
    aten.native_layer_norm.default: _normalised(_over_shape),
    aten.rms_norm.default: _normalised(_over_shape, centred=False),
    aten.group_norm.default: _normalised(_over_groups),
    aten.instance_norm.default: _normalised(_over_channels, 1, 2),
    **_rowwise((aten.sum.default, aten.sum.dim_IntList, aten.cumsum.default), _reduces(add=1)),
    **_rowwise((aten.mean.default, aten.mean.dim), _reduces({"multiply": 1}, add=1)),
    **_rowwise((aten.amax.default, aten.amin.default, aten.max.dim, aten.max.default), _reduces(compare=1)),
    aten.var.correction: _reduces({"multiply": 2}, add=3, multiply=1),
    aten.std.correction: _reduces({"multiply": 2, "square_root": 1}, add=3, multiply=1),
    aten.norm.ScalarOpt_dim: _reduces({"square_root": 1}, add=1, multiply=1),
    aten.linalg_vector_norm.default: _reduces({"square_root": 1}, add=1, multiply=1),
    aten.logsumexp.default: _reduces({"exponential": 1, "add": 1}, compare=1, add=2, exponential=1),
    **_rowwise((aten.max_pool1d.default, aten.max_pool2d.default), _pool("compare")),
    aten.max_pool2d_with_indices.default: _pool("compare"),
    aten.adaptive_max_pool2d.default: _reduces(compare=1),
    **_rowwise((aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
               _pool("add", {"multiply": 1})),
    **_rowwise((aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
                aten._adaptive_avg_pool2d.default), _reduces({"multiply": 1}, add=1)),
    **_rowwise((aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default), _free),
    **_rowwise((aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default), _each(multiply=4, add=3)),
    aten.upsample_bicubic2d.vec: _each(multiply=16, add=15),
}  # fmt: skip
