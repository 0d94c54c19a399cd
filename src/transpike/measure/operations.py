"""Operations of one layer: how many a dense layer needs, and how many one spike causes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
import torch.fx

from ..ops import FACTORS
from ..ops.multiply import ELEMENTWISE

aten = torch.ops.aten


def dense_operations(node: torch.fx.Node, factors: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> int:
    """Multiply-accumulates of the layer as the source model runs it, padding included (as FLOP counters do, halved)."""
    left, right = factors
    if node.target in ELEMENTWISE:
        return out.numel()
    name = str(node.target)
    if "transpose" in name:
        return left.numel() * prod(right.shape[1:])
    if "conv" in name:
        return out.numel() * prod(right.shape[1:])
    if node.target is aten.linear.default:
        return out.numel() * right.shape[-1]
    if node.target is aten.einsum.default:
        return _einsum_size(str(node.args[0]), left, right)
    return out.numel() * left.shape[-1]  # matrix products


def _einsum_size(equation: str, left: torch.Tensor, right: torch.Tensor) -> int:
    names = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for labels, tensor in zip(names, (left, right), strict=True):
        before, _, after = labels.partition("...")
        dots = [f".{i}" for i in range(tensor.dim() - len(before) - len(after), 0, -1)]  # aligned from the right
        for label, size in zip([*before, *dots, *after], tensor.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return prod(sizes.values())


def fan_out(node: torch.fx.Node, position: int, operand: torch.Tensor, weight: torch.Tensor, rest: Any) -> torch.Tensor:
    """How many outputs each element of the spiking operand reaches, in the operand's shape (of one sample).

    The layer is linear in the operand, so with all weights 1 this is its transpose applied to ones: exact for padding,
    stride, dilation and groups. `rest(operand, weight)` calls the operator with its other arguments.
    """
    with torch.inference_mode(False), torch.enable_grad():  # the first alone lifts what a caller has switched off
        probe = torch.zeros_like(operand, dtype=torch.float64).requires_grad_()
        out = rest(probe, torch.ones_like(weight, dtype=torch.float64))
        (reach,) = torch.autograd.grad(out, probe, torch.ones_like(out))
    return reach.round().to(torch.int64)


def product_operations(
    node: torch.fx.Node, left: torch.Tensor, right: torch.Tensor, steps: int, axes: tuple[int | None, int | None]
) -> torch.Tensor:
    """Pairs of non-zero elements that a product multiplies, per step: sum over k of count_left(k) count_right(k).

    Arguments: left, right -- masks (bool, or counts of spikes) in the operands' shapes, time folded into the batch axes
    `axes` (an elementwise product has it where the result has).
    Returns: int64 [steps]. By counts of rows and columns, never by a second product.
    """
    if node.target in ELEMENTWISE:
        both = left.to(torch.int32) * right
        return per_step(both, steps, node.meta.get("batch_axis") or 0).flatten(1).sum(1)
    if node.target is aten.einsum.default:
        return _einsum_pairs(str(node.args[0]), left, right, steps, axes)
    counts = product_counts(left, 0, steps, axes[0]), product_counts(right, 1, steps, axes[1])
    return paired(*counts)


def product_counts(mask: torch.Tensor, side: int, steps: int, axis: int | None) -> torch.Tensor:
    """Non-zero elements of each column of a left operand (side 0), of each row of a right one, time first."""
    if mask.device.type == "cpu":  # in torch 10 times as slow, and the whole mask in int32
        counts = torch.from_numpy(mask.numpy().sum(side - 2, dtype=np.int32))
    else:
        counts = mask.sum(side - 2, dtype=torch.int32)
    return per_step(counts, steps, axis)


def paired(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Pairs that a matrix product multiplies, from the counts of its operands, per step."""
    return (left.to(torch.int64) * right).flatten(1).sum(1)


def counts_apart(node: torch.fx.Node) -> bool:
    """Whether the pairs of a product follow from counts of each operand."""
    return node.target not in ELEMENTWISE and node.target is not aten.einsum.default


def _einsum_pairs(
    equation: str, left: torch.Tensor, right: torch.Tensor, steps: int, axes: tuple[int | None, int | None]
) -> torch.Tensor:
    first, second = equation.replace(" ", "").split("->")[0].split(",")
    pieces = (per_step(left, steps, axes[0]), per_step(right, steps, axes[1]))
    return (
        torch.einsum(f"Z{first},Z{second}->Z", *(piece.to(torch.float64) for piece in pieces)).round().to(torch.int64)
    )


def per_step(value: torch.Tensor, steps: int, axis: int | None) -> torch.Tensor:
    """[..., T*B, ...] -> [T, ..., B, ...]: time out of the batch axis to the front. One step needs no axis."""
    if steps == 1:
        return value.unsqueeze(0)
    return value.unflatten(axis, (steps, -1)).movedim(axis, 0)  # type: ignore[arg-type]


__all__ = [
    "FACTORS",
    "counts_apart",
    "dense_operations",
    "fan_out",
    "paired",
    "per_step",
    "product_counts",
    "product_operations",
]
