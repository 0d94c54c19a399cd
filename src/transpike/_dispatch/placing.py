"""Which operator runs where, and the graph that brings weights and values there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.fx

from .. import ops
from .._normalise import module_path, redirect

DISK = "disk"
Devices = dict[torch.fx.Node, torch.device]
Names = Mapping[torch.fx.Node, "str | torch.device"]


@dataclass(frozen=True)
class DeviceMap:
    """{module path: "disk" or a device}; the longest path that holds a name decides."""

    places: Mapping[str, str]

    def place(self, name: str) -> str | None:
        held = [path for path in self.places if below(name, path)]
        return self.places[max(held, key=len)] if held else None

    @cached_property
    def main(self) -> torch.device:
        """As accelerate has it: the first device that is neither the CPU nor the disk."""
        return torch.device(next((place for place in self.places.values() if place not in (DISK, "cpu")), "cpu"))

    def runs_on(self, name: str) -> torch.device | None:
        """Where operators of a module run: what is kept on the CPU or on disk, on the main device."""
        place = self.place(name)
        return place if place is None else self.main if place in (DISK, "cpu") else torch.device(place)

    def is_offloaded(self, name: str) -> bool:
        """Kept where it does not run."""
        place = self.place(name)
        return place == DISK or (place == "cpu" and self.main.type != "cpu")


def below(name: str, path: str) -> bool:
    return path in ("", name) or name.startswith(f"{path}.")


# Of a get_attr node: the source's name of its tensor, or where a constant of the graph itself is.
Named = Callable[[torch.fx.Node], str | torch.device]


def devices_of(graph: torch.fx.Graph, where: DeviceMap, named: Named) -> Devices:
    """Where every node's value is.

    An operator runs where its (first) weight does; without weights, where its module does; where the map does not say,
    where the last of its inputs is. A constant of the graph itself stays where it is.
    """
    found: Devices = {}
    for node in graph.nodes:
        inputs = [operand for operand in node.all_input_nodes if has_tensor(operand)]
        device = found[inputs[-1]] if inputs else where.main
        if node.op == "get_attr":
            name = named(node)
            device = name if isinstance(name, torch.device) else where.runs_on(name) or where.main
        elif node.op == "call_function" and not ops.is_site(node) and isinstance(node.meta.get("val"), torch.Tensor):
            weights = [operand for operand in inputs if operand.op == "get_attr" and isinstance(named(operand), str)]
            stays = inputs and not isinstance(inputs[0].meta["val"], torch.Tensor)  # an item of several outputs
            if not stays:
                device = found[weights[0]] if weights else where.runs_on(module_path(node)) or device
        found[node] = device
    return found


def has_tensor(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(item, torch.Tensor) for item in value)
    )


def spread(
    graph: torch.fx.Graph, where: DeviceMap, named: Named, fetch: Callable[[str], tuple[Any, tuple]]
) -> tuple[torch.fx.Graph, dict[str, torch.device]]:
    """A copy of the graph that moves values to where they are read, and fetches what is offloaded just before.

    Arguments: fetch -- a weight's name -> the function, and its arguments before the device, that read it from disk.
    Returns: the graph, and the device of every site's neuron.
    """
    copy, copies = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    copy.output(copy.graph_copy(graph, copies))
    names = {copies[node]: named(node) for node in graph.nodes if node.op == "get_attr"}
    devices = devices_of(copy, where, names.__getitem__)
    rewriting = _Rewriting(copy, where, names, devices, fetch, _derived(copy, where, names), {})
    for node in list(copy.nodes):
        if node.op in ("placeholder", "get_attr") or node in rewriting.derived:
            continue
        device = where.main if node.op == "output" else devices[node]
        for operand in node.all_input_nodes:
            node.replace_input_with(operand, rewriting.brought(operand, node, device))
        redirect(node, device)
    copy.eliminate_dead_code()
    copy.lint()
    sites = {str(node.args[1]): devices[node] for node in copy.nodes if ops.is_site(node)}
    return copy, sites


def _derived(graph: torch.fx.Graph, where: DeviceMap, names: Names) -> set[torch.fx.Node]:
    """Offloaded weights and what follows from them and other weights alone: fetched, or computed anew, for each
    reader, so that nothing as large as a weight stays."""
    fixed = set(names)
    found = {node for node, name in names.items() if isinstance(name, str) and where.is_offloaded(name)}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and all(operand in fixed for operand in inputs):
            fixed.add(node)
            if any(operand in found for operand in inputs):
                found.add(node)
    return found


@dataclass(frozen=True)
class _Rewriting:
    graph: torch.fx.Graph
    where: DeviceMap
    names: Names
    devices: Devices
    fetch: Callable[[str], tuple[Any, tuple]]
    derived: set[torch.fx.Node]
    moved: dict[tuple[torch.fx.Node, torch.device], torch.fx.Node]

    def brought(self, operand: torch.fx.Node, reader: torch.fx.Node, device: torch.device) -> torch.fx.Node:
        """The operand as `reader`, on `device`, can read it."""
        if operand in self.derived:
            return self._late(operand, reader, device)
        if self.devices[operand] == device or not isinstance(operand.meta.get("val"), torch.Tensor):
            return operand
        if operand.op == "get_attr":
            with self.graph.inserting_before(reader):
                return self._marked(self.graph.call_function(ops.move, (operand, device)), operand, late=True)
        if (operand, device) not in self.moved:
            with self.graph.inserting_after(operand):
                node = self.graph.call_function(ops.move, (operand, device))
            self.moved[operand, device] = self._marked(node, operand)
        return self.moved[operand, device]

    def _late(self, node: torch.fx.Node, reader: torch.fx.Node, device: torch.device) -> torch.fx.Node:
        if node.op != "get_attr":
            inputs = {operand: self._late(operand, reader, device) for operand in node.all_input_nodes}
            with self.graph.inserting_before(reader):
                new = self.graph.node_copy(node, inputs.__getitem__)
            redirect(new, device)
            return self._marked(new, node, late=True)
        name = str(self.names[node])
        target, arguments = self.fetch(name) if self.where.place(name) == DISK else (ops.move, (node,))
        with self.graph.inserting_before(reader):
            return self._marked(self.graph.call_function(target, (*arguments, device)), node, late=True)

    @staticmethod
    def _marked(new: torch.fx.Node, old: torch.fx.Node, *, late: bool = False) -> torch.fx.Node:
        new.meta.update(old.meta)
        if late:
            new.meta["late"] = True
        return new
