"""Captured, policy -> Plan: what every operator is and where the neurons go, decided before anything runs.

A plan is a value: it prints, compares and goes into the report. Provenance decides (see `ops`), never a name.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from . import ops
from ._capture import Captured, module_path
from .errors import ConfigError, PlanError
from .ops import carries
from .ops.multiply import CONVOLUTIONS, ELEMENTWISE
from .ops.shape import KEEPS_ALL, REPEATS
from .table import Table, shorten
from .types import Layer, Operand, Provenance, Role, Site, SiteKind

SOFTMAX = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


@dataclass(frozen=True)
class Policy:
    """Where neurons go. Frozen and serialisable; each recipe carries one, and the plan prints it.

    Arguments:
        first_layer -- "analog": a weight layer that reads the raw input gets no neuron; "spiking": it does.
        head -- "analog" or "spiking": the weight layer whose result is the output up to scale and bias.
        elementwise_products -- "spiking": both operands of x * y (gates) get neurons; "compensated": kept exact.
        analog -- module-name patterns (as in `fnmatch`) whose layers get no neuron.
        allow_unknown -- operators without a rule run on running means as they are, and every report lists them.
    """

    first_layer: str = "analog"
    head: str = "spiking"
    elementwise_products: str = "spiking"
    analog: tuple[str, ...] = ()
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("first_layer", ("analog", "spiking")),
            ("head", ("analog", "spiking")),
            ("elementwise_products", ("spiking", "compensated")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        object.__setattr__(self, "analog", tuple(self.analog))


@dataclass(frozen=True)
class Operator:
    """One call node of the graph as the plan sees it."""

    node: str
    op: str
    module: str
    role: Role
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Roles, layers and sites of one captured model under one policy."""

    policy: Policy
    operators: tuple[Operator, ...]
    layers: tuple[Layer, ...]
    sites: tuple[Site, ...]
    unknown: tuple[Operator, ...] = field(default=())

    def site_table(self) -> Table:
        rows = []
        for site in self.sites:
            shape = " x ".join("B" if size is None else str(size) for size in site.shape)
            rows.append((shorten(site.name, 64), str(site.kind), shape, str(len(site.reads)), shorten(site.reads[0][0], 48)))
        neurons = sum(site.neurons for site in self.sites)
        note = f"{len(self.sites)} sites, {neurons:,} neurons per sample; the residual stream stays analog"
        return Table("Sites", ("site", "kind", "shape", "readers", "first reader"), tuple(rows), (note,))

    def operator_table(self) -> Table:
        spiking = {layer.node for layer in self.layers if layer.spiking}
        analog = {layer.node for layer in self.layers if not layer.spiking}
        counts = Counter((operator.op, self._treatment(operator, spiking, analog)) for operator in self.operators)
        order = {"UNKNOWN": 0, "spiking": 1, "analog": 2, "compensated": 3, "passes through": 4, "constant": 5}
        items = sorted(counts.items(), key=lambda item: (order[item[0][1]], -item[1], item[0][0]))
        rows = tuple((op, treatment, str(count)) for (op, treatment), count in items)
        notes = tuple(f"analog: {layer.name} ({layer.reason})" for layer in self.layers if layer.reason)
        notes += tuple(f"UNKNOWN: {unknown.op} in {unknown.module or 'the model'}, node {unknown.node}" for unknown in self.unknown)
        return Table("Operators", ("operator", "treatment", "count"), rows, notes)

    def _treatment(self, operator: Operator, spiking: set[str], analog: set[str]) -> str:
        if operator.node in spiking:
            return "spiking"
        if operator.node in analog:
            return "analog"
        return {
            Role.NONLINEAR: "compensated",
            Role.UNKNOWN: "UNKNOWN",
            Role.CONSTANT: "constant",
        }.get(operator.role, "passes through")

    def __str__(self) -> str:
        return f"{self.site_table()}\n\n{self.operator_table()}"

    def __rich__(self) -> Any:
        import rich.console

        return rich.console.Group(self.site_table(), "", self.operator_table())


def plan(captured: Captured, policy: Policy | None = None) -> Plan:
    """Give every operator its role and every spiking operand its site.

    Raises: PlanError naming each operator without a rule, its module path and shape, unless the policy allows it.
    """
    policy = policy or Policy()
    nodes = [node for node in captured.graph.graph.nodes if node.op != "output"]
    provenance: dict[torch.fx.Node, Provenance] = {}
    roles: dict[torch.fx.Node, Role] = {}
    layered: set[torch.fx.Node] = set()  # signals with a weight layer somewhere before them
    for node in nodes:
        provenance[node], roles[node] = _judge(node, provenance)
        multiplies = roles[node] in (Role.WEIGHT, Role.PRODUCT)
        if multiplies or any(operand in layered for operand in node.all_input_nodes):
            layered.add(node)
    operators = tuple(_operator(node, roles[node]) for node in nodes if node.op == "call_function")
    unknown = tuple(operator for operator in operators if operator.role is Role.UNKNOWN)
    if unknown and not policy.allow_unknown:
        raise PlanError(_refusal(unknown))
    layers, sites = _place(nodes, roles, provenance, layered, policy)
    return Plan(policy, operators, layers, sites, unknown)


def _judge(node: torch.fx.Node, provenance: dict[torch.fx.Node, Provenance]) -> tuple[Provenance, Role]:
    value = node.meta.get("val")
    floating = not isinstance(value, torch.Tensor) or value.dtype.is_floating_point
    if node.op == "placeholder":
        return (Provenance.SIGNAL if floating else Provenance.CONTROL), Role.CONSTANT
    if node.op == "get_attr":
        return Provenance.CONSTANT, Role.CONSTANT
    role = ops.role_of(node, provenance)
    origins = {provenance[operand] for operand in node.all_input_nodes}
    if isinstance(value, torch.SymInt):
        return Provenance.CONSTANT, Role.CONSTANT
    if role is Role.WEIGHT or Provenance.SIGNAL in origins:
        return Provenance.SIGNAL, role
    return (Provenance.CONTROL if Provenance.CONTROL in origins else Provenance.CONSTANT), role


def _operator(node: torch.fx.Node, role: Role) -> Operator:
    value = node.meta.get("val")
    shape = tuple(_size(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()
    return Operator(node.name, _op_name(node), module_path(node), role, shape)


def _size(size: Any) -> str:
    return str(size) if isinstance(size, int) else "B" if size.node.expr.is_Symbol else "k*B"


def _op_name(node: torch.fx.Node) -> str:
    return str(node.target).removeprefix("aten.") if "aten" in str(node.target) else getattr(node.target, "__name__", str(node.target))


def _refusal(unknown: tuple[Operator, ...]) -> str:
    named = "; ".join(
        f"{item.op} in module {item.module or '(top level)'} (node {item.node}, shape {' x '.join(item.shape) or 'none'})"
        for item in unknown[:5]
    )
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return (
        f"no rule for {len(unknown)} operator(s) on a signal: {named}{more}; "
        "allow them with allow_unknown=True (--allow-unknown) to run them on running means, or add a rule in transpike/ops"
    )


# --- placing neurons -------------------------------------------------------------------------------------------------


def _place(
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
        layers.append(Layer(name, node.name, module, _op_name(node), roles[node], tuple(operands), signals, reason))
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
    return f"{module}:{kinds[0]}*{kinds[1]}"


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
    return int(expression.subs({symbol: 1 for symbol in expression.free_symbols}))


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
    return f"matches {pattern!r}" if pattern else ""


def _is_head(node: torch.fx.Node, roles: dict[torch.fx.Node, Role], provenance: dict[torch.fx.Node, Provenance]) -> bool:
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


def _comes_from_softmax(node: Any, roles: dict[torch.fx.Node, Role], provenance: dict[torch.fx.Node, Provenance]) -> bool:
    while node.target not in SOFTMAX:
        signals = [operand for operand in node.all_input_nodes if carries(operand, provenance)]
        if roles.get(node) not in (Role.STRUCTURAL, Role.AFFINE) or len(signals) != 1:
            return False
        node = signals[0]
    return True


def _leads_to_softmax(node: torch.fx.Node, roles: dict[torch.fx.Node, Role]) -> bool:
    return any(
        user.target in SOFTMAX or (roles.get(user) in (Role.STRUCTURAL, Role.AFFINE) and _leads_to_softmax(user, roles))
        for user in node.users
    )


# --- marking the graph -----------------------------------------------------------------------------------------------


def insert_sites(captured: Captured, plan: Plan) -> torch.fx.GraphModule:
    """A copy of the graph in which every operand of a spiking layer is read through `ops.site(tensor, name)`.

    The rearrangements between the tensor and each reader are repeated behind the site; parameters are shared.
    """
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(captured.graph.graph, copies))
    by_name = {node.name: copies[node] for node in captured.graph.graph.nodes if node in copies}
    markers: dict[str, torch.fx.Node] = {}
    for site in plan.sites:
        root = by_name[site.node]
        with graph.inserting_after(root):
            markers[site.name] = graph.call_function(ops.site, (root, site.name))
        markers[site.name].meta.update(root.meta)
    for layer in plan.layers:
        reader = by_name[layer.node]
        for operand in layer.operands:
            if operand.site is not None:
                source = by_name[operand.node]
                behind = _behind(source, markers[operand.site], reader)
                reader.replace_input_with(source, behind)
    graph.eliminate_dead_code()
    graph.lint()
    return torch.fx.GraphModule(captured.graph, graph)


def _behind(operand: torch.fx.Node, marker: torch.fx.Node, reader: torch.fx.Node) -> torch.fx.Node:
    """The operand recomputed from the site's output: the chain of rearrangements from the root, repeated."""
    root = marker.args[0]
    if operand is root:
        return marker
    source = _behind(operand.args[0], marker, reader)  # type: ignore[arg-type]
    with reader.graph.inserting_before(reader):
        again = reader.graph.node_copy(operand, lambda node: source if node is operand.args[0] else node)
    return again
