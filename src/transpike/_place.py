"""Roles, policy -> layers and sites: which operands get a neuron, and which of them share one."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from . import ops
from ._capture import module_path
from .ops import carries
from .ops.activation import behind_activation
from .ops.multiply import CONVOLUTIONS, ELEMENTWISE
from .ops.shape import KEEPS_ALL, REPEATS
from .policy import Policy
from .types import Layer, Operand, Provenance, Role, Site, SiteKind

SOFTMAX = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


def place(
    nodes: list[torch.fx.Node],
    roles: dict[torch.fx.Node, Role],
    provenance: dict[torch.fx.Node, Provenance],
    layered: set[torch.fx.Node],
    policy: Policy,
) -> tuple[tuple[Layer, ...], tuple[Site, ...]]:
    layers: list[Layer] = []
    found: dict[torch.fx.Node, _Found] = {}
    layer_names, site_names = _Names(), _Names()
    for node in nodes:
        pair = ops.factors(node)
        if pair is None or roles[node] not in (Role.WEIGHT, Role.PRODUCT):
            continue
        kinds = _kinds(node, roles[node], pair, roles, provenance)
        module = module_path(node)
        name = layer_names.unique(_layer_name(module, node, kinds))
        reason = _analog_reason(node, pair, roles, provenance, layered, policy)
        operands = []
        for position, factor in enumerate(pair):
            if reason or not carries(factor, provenance):
                operands.append(Operand(getattr(factor, "name", ""), None))
                continue
            root = _root(factor, provenance)  # type: ignore[arg-type]
            if root not in found:
                found[root] = _Found(site_names.unique(_site_name(module, node, kinds[position])), kinds[position])
            found[root].reads.append((name, position))
            found[root].readers.append((factor, roles[node]))  # type: ignore[arg-type]
            operands.append(Operand(factor.name, found[root].name))  # type: ignore[union-attr]
        signals = tuple(carries(factor, provenance) for factor in pair)
        layers.append(Layer(name, node.name, module, op_name(node), roles[node], tuple(operands), signals, reason))
    sites = tuple(_site(_location(root, place.readers), place) for root, place in found.items())
    return tuple(layers), sites


@dataclass
class _Found:
    """A site while its readers are being collected."""

    name: str
    kind: SiteKind
    reads: list[tuple[str, int]] = field(default_factory=list)
    readers: list[tuple[torch.fx.Node, Role]] = field(default_factory=list)


def _location(root: torch.fx.Node, readers: list[tuple[torch.fx.Node, Role]]) -> torch.fx.Node:
    """Where the neuron stands: right before a weight layer that reads alone, in the layout of its input channels (but
    not where the batch is already merged with another dimension); otherwise at the tensor all readers share, before
    anything repeats it."""
    operand, role = readers[0]
    if role is not Role.WEIGHT or any(other is not operand for other, _ in readers) or _repeats(operand, root):
        return root
    node = operand
    while node is not root and not _has_own_batch(node):
        node = node.args[0]  # type: ignore[assignment]
    return node if _has_own_batch(node) else operand


def _has_own_batch(node: torch.fx.Node) -> bool:
    axis = node.meta.get("batch_axis")
    return axis is not None and axis >= 0 and _is_plain(node.meta["val"].shape[axis])


def _repeats(node: torch.fx.Node, root: torch.fx.Node) -> bool:
    while node is not root:
        if node.target in REPEATS:
            return True
        node = node.args[0]  # type: ignore[assignment]
    return False


class _Names:
    """Hands out each name once; repeats get #2, #3, ..."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self.seen[name] += 1
        return name if self.seen[name] == 1 else f"{name}#{self.seen[name]}"


def _layer_name(module: str, node: torch.fx.Node, kinds: tuple[SiteKind, SiteKind]) -> str:
    if kinds[0] in (SiteKind.LINEAR, SiteKind.CONV):
        return module or node.name
    return f"{module or node.name}:{kinds[0]}*{kinds[1]}"


def _site_name(module: str, node: torch.fx.Node, kind: SiteKind) -> str:
    return f"{module or node.name}:{'input' if kind in (SiteKind.LINEAR, SiteKind.CONV) else kind}"


def _site(node: torch.fx.Node, place: _Found) -> Site:
    axis = node.meta.get("batch_axis")
    sizes = node.meta["val"].shape
    shape = tuple(None if i == axis and _is_plain(size) else _per_sample(size) for i, size in enumerate(sizes))
    return Site(place.name, place.kind, node.name, shape, axis, tuple(place.reads))


def _is_plain(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.expr.is_Symbol


def _per_sample(size: Any) -> int:
    """The size for a batch of one: k for k * B."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _root(node: torch.fx.Node, provenance: dict[torch.fx.Node, Provenance]) -> torch.fx.Node:
    """The tensor an operand is a rearrangement of: where one neuron can serve all its readers."""
    while node.op == "call_function" and node.target in KEEPS_ALL:
        source = node.args[0]
        if not carries(source, provenance):
            break
        node = source  # type: ignore[assignment]
    return node


def _analog_reason(
    node: torch.fx.Node,
    pair: tuple[object, object],
    roles: dict[torch.fx.Node, Role],
    provenance: dict[torch.fx.Node, Provenance],
    layered: set[torch.fx.Node],
    policy: Policy,
) -> str:
    """Why a layer gets no neurons, or ""."""
    signals = [factor for factor in pair if carries(factor, provenance)]
    if not signals:
        return "looked up by index"
    if policy.first_layer == "analog" and any(factor not in layered for factor in signals):
        return "first layer"
    if policy.head == "analog" and roles[node] is Role.WEIGHT and _is_head(node, roles, provenance):
        return "head"
    if policy.elementwise_products == "compensated" and node.target in ELEMENTWISE:
        return "elementwise product, compensated"
    pattern = next((p for p in policy.analog if fnmatch.fnmatchcase(module_path(node), p)), None)
    if pattern:
        return f"matches {pattern!r}"
    if policy.sites == "activations" and not (roles[node] is Role.WEIGHT and behind_activation(signals[0], provenance)):
        return "not behind an activation"
    return ""


def _is_head(
    node: torch.fx.Node, roles: dict[torch.fx.Node, Role], provenance: dict[torch.fx.Node, Provenance]
) -> bool:
    """Whether the output is this layer's result up to constants: no other signal joins on the way."""
    for user in node.users:
        if user.op == "output":
            continue
        alone = sum(carries(operand, provenance) for operand in user.all_input_nodes) == 1
        if roles[user] not in (Role.STRUCTURAL, Role.AFFINE) or not alone or not _is_head(user, roles, provenance):
            return False
    return True


def _kinds(
    node: torch.fx.Node,
    role: Role,
    pair: tuple[object, object],
    roles: dict[torch.fx.Node, Role],
    provenance: dict[torch.fx.Node, Provenance],
) -> tuple[SiteKind, SiteKind]:
    """What the two operands are: attention is recognised by the softmax before or after a product, not by its name."""
    if role is Role.WEIGHT:
        kind = SiteKind.CONV if node.target in CONVOLUTIONS else SiteKind.LINEAR
        return kind, kind
    if node.target not in ELEMENTWISE:
        left, right = (_comes_from_softmax(factor, roles, provenance) for factor in pair)
        if left != right:
            return (SiteKind.SOFTMAX, SiteKind.VALUE) if left else (SiteKind.VALUE, SiteKind.SOFTMAX)
        if _leads_to_softmax(node, roles):
            return SiteKind.QUERY, SiteKind.KEY
    return SiteKind.PRODUCT, SiteKind.PRODUCT


def _comes_from_softmax(
    node: Any, roles: dict[torch.fx.Node, Role], provenance: dict[torch.fx.Node, Provenance]
) -> bool:
    while node.target not in SOFTMAX:
        signals = [operand for operand in node.all_input_nodes if carries(operand, provenance)]
        if roles.get(node) not in (Role.STRUCTURAL, Role.AFFINE) or len(signals) != 1:
            return False
        node = signals[0]
    return True


def _leads_to_softmax(node: torch.fx.Node, roles: dict[torch.fx.Node, Role]) -> bool:
    seen, waiting = {node}, list(node.users)
    while waiting:
        user = waiting.pop()
        if user.target in SOFTMAX:
            return True
        if user not in seen and roles.get(user) in (Role.STRUCTURAL, Role.AFFINE):
            seen.add(user)
            waiting.extend(user.users)
    return False


def op_name(node: torch.fx.Node) -> str:
    return (
        str(node.target).removeprefix("aten.")
        if "aten" in str(node.target)
        else getattr(node.target, "__name__", str(node.target))
    )
