"""Operators that multiply two factors: a weight layer when one carries a signal, a product when both do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.fx

from ..types import Provenance, Role
from .rule import Rule, carries

aten = torch.ops.aten

# Positions of the two factors. Everything else an operator takes (a bias, an additive input) is not a factor.
FACTORS: dict[object, tuple[int, int]] = {
    aten.linear.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.mv.default: (0, 1),
    aten.dot.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.conv1d.default: (0, 1),
    aten.conv1d.padding: (0, 1),
    aten.conv2d.default: (0, 1),
    aten.conv2d.padding: (0, 1),
    aten.conv3d.default: (0, 1),
    aten.conv_transpose1d.default: (0, 1),
    aten.conv_transpose2d.input: (0, 1),
    aten.convolution.default: (0, 1),
    aten.mul.Tensor: (0, 1),
}
CONVOLUTIONS = tuple(op for op in FACTORS if "conv" in str(op))
ELEMENTWISE = (aten.mul.Tensor,)


def factors(node: torch.fx.Node) -> tuple[object, object] | None:
    """The two factors of a multiplying node, or None."""
    if node.target is aten.einsum.default:
        operands = node.args[1]
        return tuple(operands) if len(operands) == 2 else None  # type: ignore[arg-type, return-value]
    positions = FACTORS.get(node.target)
    return None if positions is None else (node.args[positions[0]], node.args[positions[1]])


def replace_factor(node: torch.fx.Node, position: int, value: torch.fx.Node) -> None:
    """Let a multiplying node read another value as its first or second factor, and as nothing else."""
    if node.target is aten.einsum.default:
        operands = list(node.args[1])  # type: ignore[arg-type]
        operands[position] = value
        node.update_arg(1, operands)
    else:
        node.update_arg(FACTORS[node.target][position], value)


def matrix_product(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> Role:
    pair = factors(node)
    if pair is None:
        return Role.UNKNOWN
    signals = sum(carries(factor, provenance) for factor in pair)
    return {0: Role.AFFINE, 1: Role.WEIGHT, 2: Role.PRODUCT}[signals]


def elementwise_product(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> Role:
    """Scaling by a constant or a mask is affine. Two signals multiply, unless both are functions of one tensor
    (x * sigmoid(x), x * rsqrt(mean(x^2))): then the whole expression is one nonlinear operator."""
    pair = factors(node)
    if sum(carries(factor, provenance) for factor in pair) < 2:
        return Role.AFFINE
    return Role.NONLINEAR if common_source(pair, provenance) is not None else Role.PRODUCT  # type: ignore[arg-type]


def common_source(
    pair: tuple[torch.fx.Node, torch.fx.Node], provenance: Mapping[torch.fx.Node, Provenance]
) -> torch.fx.Node | None:
    """The one tensor both nodes are functions of, with no weight layer, product or slice in between.

    Walks back from both nodes, always expanding the latest, until a single tensor is left; a weight layer, a table, an
    input or an operator that takes a tensor apart ends the search, because what lies on both sides of it are different
    signals.
    """
    order = {node: index for index, node in enumerate(pair[0].graph.nodes)}
    frontier = set(pair)
    while len(frontier) > 1:
        latest = max(frontier, key=order.__getitem__)
        if latest.op != "call_function" or _separates(latest, provenance):
            return None
        sources = [node for node in latest.all_input_nodes if carries(node, provenance)]
        if not sources:  # a row of a table
            return None
        frontier.remove(latest)
        frontier.update(sources)
    return frontier.pop()


def _separates(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> bool:
    from .shape import SELECTS  # a table of a sister file, read when asked so that the files need no order

    if node.target in SELECTS:
        return True
    pair = factors(node)
    if pair is None:
        return False
    if node.target in ELEMENTWISE:
        return elementwise_product(node, provenance) is Role.PRODUCT
    return any(carries(factor, provenance) for factor in pair)


RULES: dict[object, Rule] = {
    **{op: matrix_product for op in FACTORS if op not in ELEMENTWISE},
    aten.einsum.default: matrix_product,
    **dict.fromkeys(ELEMENTWISE, elementwise_product),
}
