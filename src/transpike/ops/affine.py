"""Operators that are linear in the signal without mixing weights in: exact on running means, cheap, never a site."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.fx

from ..types import Provenance, Role
from .rule import Rule, always, argument, carries

aten = torch.ops.aten


def quotient(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> Role:
    """Division is affine in the numerator; a signal below the bar makes it nonlinear."""
    return Role.NONLINEAR if carries(argument(node, 1, "other"), provenance) else Role.AFFINE


def frozen_batch_norm(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> Role:
    """Batch normalisation with stored statistics is affine; with batch statistics it mixes the samples: unknown."""
    return Role.UNKNOWN if argument(node, 5, "training") else Role.AFFINE


def chosen_by(position: int, name: str) -> Rule:
    """A choice between values is nonlinear when the argument that decides depends on a signal."""

    def rule(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> Role:
        return Role.NONLINEAR if carries(argument(node, position, name), provenance) else Role.STRUCTURAL

    return rule


CHOICES: dict[object, Rule] = {
    aten.where.self: chosen_by(0, "condition"),
    aten.where.ScalarOther: chosen_by(0, "condition"),
    aten.where.ScalarSelf: chosen_by(0, "condition"),
    aten.where.Scalar: chosen_by(0, "condition"),
    aten.masked_fill.Scalar: chosen_by(1, "mask"),
    aten.masked_fill.Tensor: chosen_by(1, "mask"),
}
ELEMENT_BY_ELEMENT = (
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Scalar,
    aten.neg.default,
    aten.mul.Scalar,
    aten.div.Scalar,
)
ALWAYS_AFFINE = (
    *ELEMENT_BY_ELEMENT,
    aten.mean.default,
    aten.mean.dim,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.cumsum.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d.default,
    aten.upsample_bicubic2d.vec,
)

RULES: dict[object, Rule] = {
    **{op: always(Role.AFFINE) for op in ALWAYS_AFFINE},
    aten.div.Tensor: quotient,
    aten.batch_norm.default: frozen_batch_norm,
    **CHOICES,
}
