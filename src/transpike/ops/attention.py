"""Fused attention, split into two products, scale, mask and softmax, so that q, k, v and the weights can be sites."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.fx

from .rule import Rule, argument

aten = torch.ops.aten
Emit = Callable[..., torch.fx.Node]

RULES: dict[object, Rule] = {}  # nothing to judge: `split` leaves no fused node behind


def is_fused(node: torch.fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def split(node: torch.fx.Node, emit: Emit) -> torch.fx.Node:
    """Write softmax(scale q k^T + mask) v with `emit(target, *args, **kwargs)`, and return the last node.

    Follows torch.nn.functional.scaled_dot_product_attention: causal masks are lower triangular from the top left,
    boolean masks keep where True, rows without any key give 0, grouped keys repeat.
    """
    query, key, value = (argument(node, i, name) for i, name in enumerate(("query", "key", "value")))
    mask = argument(node, 3, "attn_mask")
    if argument(node, 4, "dropout_p", 0.0):
        raise ValueError("attention dropout is active")
    if argument(node, 7, "enable_gqa", False):
        groups = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
        key, value = (emit(aten.repeat_interleave.self_int, operand, groups, -3) for operand in (key, value))
    scale = argument(node, 6, "scale")
    scale = 1.0 / math.sqrt(query.meta["val"].shape[-1]) if scale is None else scale

    scores = emit(aten.matmul.default, query, emit(aten.transpose.int, key, -2, -1))
    scores = emit(aten.mul.Tensor, scores, scale)
    softmax = aten.softmax.int
    if argument(node, 5, "is_causal", False):
        rows, columns = query.meta["val"].shape[-2], key.meta["val"].shape[-2]
        device = query.meta["val"].device
        hidden = emit(aten.triu.default, emit(aten.ones.default, [rows, columns], dtype=torch.bool, device=device), 1)
        scores = emit(aten.masked_fill.Scalar, scores, hidden, -math.inf)
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = emit(aten.masked_fill.Scalar, scores, emit(aten.logical_not.default, mask), -math.inf)
        softmax = aten._safe_softmax.default
    elif mask is not None:
        scores = emit(aten.add.Tensor, scores, mask)
        softmax = aten._safe_softmax.default
    weights = emit(softmax, scores, -1)
    return emit(aten.matmul.default, weights, value)
