"""Sizes of graph values for a batch of one, and which of them depend on an input or on a neuron."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.fx

from .._plan import Plan
from ..types import Role

MODULES = (Role.NONLINEAR, Role.PRODUCT, Role.UNKNOWN)  # compensated, where they do not compute from spikes
CARRIES_ALONG = (Role.AFFINE, Role.STRUCTURAL)


def sizes(node: Any) -> tuple[int, ...]:
    """The sizes of a value for a batch of one; () for what is no tensor. The first of several results counts."""
    value = _value(node)
    return () if value is None else tuple(_size(size) for size in value.shape)


def _value(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return value if isinstance(value, torch.Tensor) else None


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def elements(node: Any) -> int:
    return prod(sizes(node)) if is_tensor(node) else 0


def is_tensor(node: Any) -> bool:
    return _value(node) is not None


def is_constant(value: Any) -> bool:
    """Whether a value is the same for every input: no path leads to it from one."""
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, torch.fx.Node) or node in seen:
            continue
        if node.op == "placeholder":
            return False
        seen.add(node)
        waiting.extend(node.all_input_nodes)
    return True


@dataclass(frozen=True)
class Flow:
    """What varies in a planned graph.

    varying -- nodes that depend on an input; all others are folded before inference. moving -- nodes behind a neuron:
    their values change with the step. modules -- nodes inside compensation modules: the compensated operators, and
    what lies between them alone.
    """

    nodes: dict[str, torch.fx.Node]
    varying: frozenset[torch.fx.Node]
    moving: frozenset[torch.fx.Node]
    modules: frozenset[torch.fx.Node]


def flow(graph: torch.fx.Graph, plan: Plan) -> Flow:
    spiking = {layer.node for layer in plan.layers if layer.spiking}
    varying: set[torch.fx.Node] = set()
    moving: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(operand in varying for operand in node.all_input_nodes):
            varying.add(node)
        if node.name in spiking or any(operand in moving for operand in node.all_input_nodes):
            moving.add(node)
    inside = _modules(plan, {node.name: node for node in moving}, spiking)
    return Flow({node.name: node for node in graph.nodes}, frozenset(varying), frozenset(moving), frozenset(inside))


def _modules(plan: Plan, moving: dict[str, torch.fx.Node], spiking: set[str]) -> set[torch.fx.Node]:
    """Compensated operators, and affine ones and rearrangements all of whose moving operands and users are inside."""
    here = [(moving[o.node], o.role) for o in plan.operators if o.node in moving and o.node not in spiking]
    inside = {node for node, role in here if role in MODULES}
    between = {node for node, role in here if role in CARRIES_ALONG}
    known = set(moving.values())
    while True:
        around = inside | between
        out = {n for n in between if not (set(n.all_input_nodes) & known | set(n.users)) <= around}
        if not out:
            return around
        between -= out
