"""Operators that move values without arithmetic."""

from __future__ import annotations

import operator

import torch

from ..types import Role
from .marker import move
from .rule import Rule, always

aten = torch.ops.aten

# Operators after which every element of the input is still there, at least once: a neuron commutes with them,
# so two of them on one tensor can share a neuron placed before them.
KEEPS_ALL = (
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.swapaxes.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.roll.default,
    aten.flip.default,
    aten._unsafe_view.default,
    aten.view_as.default,
    aten.reshape_as.default,
    aten.mT.default if hasattr(aten, "mT") else None,
    aten.type_as.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._to_copy.default,
    move,
)

# Those of them after which an element can be there more than once.
REPEATS = (
    aten.expand.default,
    aten.expand_as.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
)

SELECTS = (
    operator.getitem,
    aten.slice.Tensor,
    aten.select.int,
    aten.narrow.default,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.cat.default,
    aten.stack.default,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.tril.default,
    aten.triu.default,
    aten.im2col.default,
    aten.unfold.default,
    aten.diagonal.default,
    aten.sym_size.int,
)

RULES: dict[object, Rule] = {op: always(Role.STRUCTURAL) for op in (*KEEPS_ALL, *SELECTS) if op is not None}
