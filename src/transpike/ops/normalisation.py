"""Normalisation over features: nonlinear in the signal (batch normalisation with stored statistics is affine)."""

from __future__ import annotations

import torch

from ..types import Role
from .rule import Rule, always

aten = torch.ops.aten

RULES: dict[object, Rule] = {
    op: always(Role.NONLINEAR)
    for op in (
        aten.layer_norm.default,
        aten.native_layer_norm.default,
        aten.group_norm.default,
        aten.instance_norm.default,
        aten.rms_norm.default,
        aten.softmax.int,
        aten._softmax.default,
        aten._safe_softmax.default,
        aten.log_softmax.int,
    )
}
