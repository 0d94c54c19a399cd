"""Captured, policy -> Plan: what every operator is and where the neurons go, decided before anything runs.

A plan is a value: it prints, compares and goes into the report. Provenance decides (see `ops`), never a name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from . import ops
from ._capture import Captured, module_path
from ._place import op_name, place
from .errors import PlanError
from .policy import Policy
from .table import Table, shorten
from .types import Layer, Provenance, Role, Site


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
    notes: tuple[str, ...] = field(default=())  # the settings the sites will be calibrated and run with

    def site_table(self) -> Table:
        rows = []
        for site in self.sites:
            shape = " x ".join("B" if size is None else str(size) for size in site.shape)
            rows.append(
                (shorten(site.name, 64), str(site.kind), shape, str(len(site.reads)), shorten(site.reads[0][0], 48))
            )
        neurons = sum(site.neurons for site in self.sites)
        note = f"{len(self.sites)} sites, {neurons:,} neurons per sample; the residual stream stays analog"
        notes = (note, *self.policy.lines(), *self.notes)
        return Table("Sites", ("site", "kind", "shape", "readers", "first reader"), tuple(rows), notes)

    def operator_table(self) -> Table:
        spiking = {layer.node for layer in self.layers if layer.spiking}
        analog = {layer.node for layer in self.layers if not layer.spiking}
        counts = Counter((operator.op, self._treatment(operator, spiking, analog)) for operator in self.operators)
        order = {"UNKNOWN": 0, "spiking": 1, "analog": 2, "compensated": 3, "passes through": 4, "constant": 5}
        items = sorted(counts.items(), key=lambda item: (order[item[0][1]], -item[1], item[0][0]))
        rows = tuple((op, treatment, str(count)) for (op, treatment), count in items)
        notes = tuple(f"analog: {layer.name} ({layer.reason})" for layer in self.layers if layer.reason)
        notes += tuple(
            f"UNKNOWN: {unknown.op} in {unknown.module or 'the model'}, node {unknown.node}" for unknown in self.unknown
        )
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


def plan(captured: Captured, policy: Policy | None = None, *, notes: tuple[str, ...] = ()) -> Plan:
    """Give every operator its role and every spiking operand its site. `notes` are printed with the plan.

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
    layers, sites = place(nodes, roles, provenance, layered, policy)
    return Plan(policy, operators, layers, sites, unknown, notes)


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
    return Operator(node.name, op_name(node), module_path(node), role, shape)


def _size(size: Any) -> str:
    return str(size) if isinstance(size, int) else "B" if size.node.expr.is_Symbol else "k*B"


def _refusal(unknown: tuple[Operator, ...]) -> str:
    named = "; ".join(
        f"{item.op} in module {item.module or '(top level)'} (node {item.node}, shape {' x '.join(item.shape) or '-'})"
        for item in unknown[:5]
    )
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return (
        f"no rule for {len(unknown)} operator(s) on a signal: {named}{more}; "
        "allow them with allow_unknown=True (--allow-unknown) to run them on running means, or add a rule to ops"
    )
