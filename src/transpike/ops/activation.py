"""Pointwise and reducing nonlinearities: kept exactly, by expectation compensation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.fx

from ..types import Provenance, Role
from .affine import ELEMENT_BY_ELEMENT
from .multiply import ELEMENTWISE
from .rule import Rule, always, carries
from .shape import KEEPS_ALL

aten = torch.ops.aten

# Activation functions of neural networks, as they are or as part of one that is spelled out (tanh or erf of a GELU).
ACTIVATIONS = (
    aten.relu.default,
    aten.relu6.default,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.erf.default,
    aten.glu.default,
)

NONLINEAR = (
    *ACTIVATIONS,
    aten.clamp.Tensor,
    aten.clamp_max.default,
    aten.exp.default,
    aten.log.default,
    aten.abs.default,
    aten.square.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor,
    aten.pow.Scalar,
    aten.maximum.default,
    aten.minimum.default,
    aten.amax.default,
    aten.amin.default,
    aten.max.dim,
    aten.max.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.adaptive_max_pool2d.default,
    aten.var.correction,
    aten.std.correction,
    aten.norm.ScalarOpt_dim,
    aten.linalg_vector_norm.default,
    aten.logsumexp.default,
    aten.sin.default,
    aten.cos.default,
    # Comparisons of a signal: evaluated on the running mean like any other function of it.
    aten.gt.Scalar,
    aten.ge.Scalar,
    aten.lt.Scalar,
    aten.le.Scalar,
    aten.eq.Scalar,
    aten.ne.Scalar,
    aten.isinf.default,
    aten.isnan.default,
    aten.nan_to_num.default,
)


def behind_activation(value: object, provenance: Mapping[torch.fx.Node, Provenance]) -> bool:
    """Whether a signal is an activation, up to rearrangement and constants, or an element-wise product with one."""
    if not isinstance(value, torch.fx.Node) or not carries(value, provenance):
        return False
    if value.target in ACTIVATIONS:
        return True
    signals = [operand for operand in value.all_input_nodes if carries(operand, provenance)]
    if value.target in ELEMENTWISE:
        return any(behind_activation(operand, provenance) for operand in signals)
    passes = value.target in (*KEEPS_ALL, *ELEMENT_BY_ELEMENT, aten.div.Tensor)
    return passes and len(signals) == 1 and behind_activation(signals[0], provenance)


RULES: dict[object, Rule] = {op: always(Role.NONLINEAR) for op in NONLINEAR}
