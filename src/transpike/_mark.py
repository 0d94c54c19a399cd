"""Captured, Plan -> the marked graph: the source graph in which every spiking operand is read through a site."""

from __future__ import annotations

import torch
import torch.fx

from . import ops
from ._capture import Captured
from ._plan import Plan


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
        behind: dict[torch.fx.Node, torch.fx.Node] = {}
        for position, operand in enumerate(layer.operands):
            if operand.site is not None:
                source = by_name[operand.node]
                if source not in behind:
                    behind[source] = _behind(source, markers[operand.site], reader)
                ops.replace_factor(reader, position, behind[source])
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
        return reader.graph.node_copy(operand, lambda node: source if node is operand.args[0] else node)
