"""Running a NIR graph as written, step by step.

Time is discrete, dt = 1. In a step every node but Delay is computed from what arrives in that step (edges into one node
add), I adds its input times r to its state and gives the state, Delay gives what arrived one step before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..errors import ModelError
from .nir_file import facts
from .nir_operators import pair

if TYPE_CHECKING:
    import nir

Function = Callable[[torch.Tensor], torch.Tensor]
Tensors = dict[str, torch.Tensor]


def run_nir(graph: nir.NIRGraph, inputs: torch.Tensor, *, steps: int) -> Iterator[Tensors]:
    """Run a graph that `write_nir` wrote on [B, ...], which arrives as its code says: at every step (rate), or at the
    first, and zeros after (sum). Yields as `run_nir_on`."""
    first_only = facts(graph)["code"] == "sum"
    silent = torch.zeros_like(inputs)
    return run_nir_on(graph, ({"input": inputs if t == 0 or not first_only else silent} for t in range(steps)))


@torch.no_grad()
def run_nir_on(graph: nir.NIRGraph, arrivals: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[Tensors]:
    """Run a graph on what arrives in each step, [B, ...] by name of Input; yields what every Output gives in the step:
    "output", and "name/output" of a sub-graph. Raises ModelError for an unknown node, or a loop without a Delay."""
    nodes, edges = flat(graph)
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        before[target].append(source)
    order = _order(nodes, before)
    kinds = {name: type(nodes[name]).__name__ for name in order}
    delays = [name for name in order if kinds[name] == "Delay"]
    functions = {name: _function(name, node) for name, node in nodes.items()}
    state: Tensors = {}
    for arriving in arrivals:
        values: dict[str, Any] = {}
        for name in order:
            if kinds[name] == "Delay":
                values[name] = state.get(name, 0.0)
                continue
            incoming = arriving[name] if not before[name] else _total(before[name], values)
            values[name] = functions[name](incoming)
            if kinds[name] == "I":
                state[name] = values[name] = state.get(name, 0.0) + values[name]
        for name in delays:
            state[name] = _total(before[name], values)
        yield {name: values[name] for name in order if kinds[name] == "Output"}


def _total(sources: list[str], values: dict[str, Any]) -> Any:
    first, *rest = (values[source] for source in sources)
    for value in rest:
        first = first + value
    return first


def flat(graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Sub-graphs dissolved: their nodes as "name/node", edges to and from their Input and Output."""
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    entry: dict[str, str] = {}
    leave: dict[str, str] = {}
    for name, node in graph.nodes.items():
        entry[name] = leave[name] = prefix + name
        if type(node).__name__ != "NIRGraph":
            nodes[prefix + name] = node
            continue
        inside, within = flat(node, f"{prefix}{name}/")
        nodes |= inside
        edges += within
        (into,), (out,) = node.inputs, node.outputs
        entry[name], leave[name] = f"{prefix}{name}/{into}", f"{prefix}{name}/{out}"
    return nodes, edges + [(leave[source], entry[target]) for source, target in graph.edges]


def _order(nodes: dict[str, Any], before: dict[str, list[str]]) -> list[str]:
    """Sources first; what a Delay reads is from the step before."""
    waits = {name: set() if type(node).__name__ == "Delay" else set(before[name]) for name, node in nodes.items()}
    after: dict[str, list[str]] = {name: [] for name in nodes}
    for name, sources in waits.items():
        for source in sources:
            after[source].append(name)
    missing = {name: len(sources) for name, sources in waits.items()}
    ready, order = [name for name, count in missing.items() if count == 0], []
    while ready:
        name = ready.pop()
        order.append(name)
        for target in after[name]:
            missing[target] -= 1
            if missing[target] == 0:
                ready.append(target)
    if len(order) < len(nodes):
        stuck = next(name for name, count in missing.items() if count)
        raise ModelError(f"the graph has a loop without a Delay through {stuck}")
    return order


def _function(name: str, node: Any) -> Function:
    """What a node does to the sum of what arrives; I adds the result to its state, Delay is the caller's affair."""
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return lambda x: x
    if kind == "Delay" and bool((torch.as_tensor(node.delay) == 1).all()):
        return lambda x: x
    if kind in ("Affine", "Linear"):
        weight, shift = torch.as_tensor(node.weight), torch.as_tensor(node.bias) if kind == "Affine" else None
        return lambda x: F.linear(x, weight, shift)
    if kind in ("Conv1d", "Conv2d"):
        conv: Any = F.conv1d if kind == "Conv1d" else F.conv2d
        weight, shift = torch.as_tensor(node.weight), torch.as_tensor(node.bias)
        window = [_window(value) for value in (node.stride, node.padding, node.dilation)]
        return lambda x: conv(x, weight, shift, *window, int(node.groups))
    if kind in ("Scale", "I"):
        scale = torch.as_tensor(node.scale if kind == "Scale" else node.r)
        return lambda x: x * scale
    if kind == "Threshold":
        threshold = torch.as_tensor(node.threshold)
        return lambda x: (x > threshold).to(x.dtype)
    if kind in ("AvgPool2d", "SumPool2d"):
        kernel, stride, padding = (_window(value) for value in (node.kernel_size, node.stride, node.padding))
        times = prod(pair(kernel)) if kind == "SumPool2d" else 1
        return lambda x: F.avg_pool2d(x, kernel, stride, padding) * times
    if kind == "Flatten":
        start, end = (int(i) + (1 if i >= 0 else 0) for i in (node.start_dim, node.end_dim))
        return lambda x: x.flatten(start, end)
    raise ModelError(f"{name} is a {kind}{' of other than one step' * (kind == 'Delay')}, which this does not run")


def _window(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in torch.as_tensor(value).flatten())
