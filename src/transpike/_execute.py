"""Running a marked graph: what lies before the first neuron once, the rest as often as needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.fx.node import map_arg

from . import ops, products
from .errors import DataError

aten = torch.ops.aten
Values = dict[torch.fx.Node, Any]
# Keep the order of elements, and what is beside the last dimensions.
REGROUPING = (
    aten.reshape.default,
    aten.view.default,
    aten.flatten.using_ints,
    aten.contiguous.default,
    aten.dropout.default,
)


@dataclass(frozen=True)
class Program:
    """A marked graph cut in two.

    prefix -- nodes that no neuron precedes: their values do not change with the step. body -- the rest, with late nodes
    (`meta["late"]`: weights fetched for the node that follows) where their reader is. crossing -- prefix nodes that the
    body reads. dead_after -- values nobody reads after a node. scaled -- by the node that multiplies a product by a
    power of two, the product, if nobody else reads it. fed -- by site, the linear layers that read it, where nothing
    else does (in whatever grouping of its dimensions).
    """

    module: torch.fx.GraphModule
    prefix: tuple[torch.fx.Node, ...]
    body: tuple[torch.fx.Node, ...]
    crossing: tuple[torch.fx.Node, ...]
    dead_after: Mapping[torch.fx.Node, tuple[torch.fx.Node, ...]]
    output: torch.fx.Node
    scaled: Mapping[torch.fx.Node, torch.fx.Node]
    fed: Mapping[torch.fx.Node, tuple[torch.fx.Node, ...]]

    @property
    def result(self) -> torch.fx.Node:
        """The node whose value the network gives."""
        return self.output.all_input_nodes[0]


def cut(module: torch.fx.GraphModule) -> Program:
    nodes = list(module.graph.nodes)
    body: list[torch.fx.Node] = []
    moving: set[torch.fx.Node] = set()
    late: list[torch.fx.Node] = []
    for node in nodes:
        late.append(node)
        if node.meta.get("late"):
            continue
        if ops.is_site(node) or any(operand in moving for operand in node.all_input_nodes):
            moving.update(late)
            body.extend(late)
        late.clear()
    output = next(node for node in nodes if node.op == "output")
    body = [node for node in body if node is not output]
    prefix = tuple(node for node in nodes if node not in moving and node is not output)
    read = {operand for node in (*body, output) for operand in node.all_input_nodes}
    crossing = tuple(node for node in prefix if node in read)
    kept = {*crossing, *output.all_input_nodes}
    dead = {**_dead_after(prefix, kept), **_dead_after(body, kept)}
    return Program(module, prefix, tuple(body), crossing, dead, output, _scaled(body), _fed(body, set(crossing)))


def _scaled(nodes: Sequence[torch.fx.Node]) -> dict[torch.fx.Node, torch.fx.Node]:
    found, known = {}, set(nodes)
    for node in nodes:
        if node.target is aten.mul.Tensor and isinstance(node.args[0], torch.fx.Node):
            product, factor = node.args[:2]
            alone = product.target is aten.matmul.default and len(product.users) == 1 and product in known
            if alone and isinstance(factor, float) and math.frexp(factor)[0] == 0.5:
                found[node] = product
    return found


def _fed(
    nodes: Sequence[torch.fx.Node], crossing: set[torch.fx.Node]
) -> dict[torch.fx.Node, tuple[torch.fx.Node, ...]]:
    found = {node: _listeners(node, crossing) for node in nodes if ops.is_site(node)}
    return {site: tuple(readers) for site, readers in found.items() if readers}


def is_constant_linear(node: torch.fx.Node, crossing: Container[torch.fx.Node]) -> bool:
    """Whether a node is a linear layer whose weights are there before the body runs."""
    if node.target is not aten.linear.default:
        return False
    return all(other in crossing and other.op == "get_attr" for other in node.args[1:] if other)  # type: ignore


def _listeners(value: torch.fx.Node, crossing: set[torch.fx.Node]) -> list[torch.fx.Node] | None:
    """The linear layers that read a value, if all its readers are linear layers, with constant weights."""
    found: list[torch.fx.Node] = []
    for reader in value.users:
        below: list[torch.fx.Node] | None = None
        if reader.args and reader.args[0] is value:
            if reader.target in REGROUPING:
                below = _listeners(reader, crossing)
            elif is_constant_linear(reader, crossing):
                below = [reader]
        if below is None:
            return None
        found += below
    return found


def _dead_after(nodes: Sequence[torch.fx.Node], kept: set[torch.fx.Node]) -> dict[torch.fx.Node, tuple]:
    """By node: what is read for the last time there, but what is kept."""
    dead: dict[torch.fx.Node, tuple[torch.fx.Node, ...]] = {}
    seen = set(kept)
    for node in reversed(nodes):
        last = tuple(operand for operand in (*node.all_input_nodes, node) if operand not in seen)
        if last:
            dead[node] = last
            seen.update(last)
    return dead


def run_prefix(program: Program, leaves: tuple[torch.Tensor, ...]) -> Values:
    """Values of the prefix nodes that the body reads."""
    values: Values = {}
    inputs = iter(leaves)
    for node in program.prefix:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            values[node] = fetch(program.module, str(node.target))
        else:
            values[node] = call(node, values)
        for dead in program.dead_after.get(node, ()):
            del values[dead]
    return {node: values[node] for node in program.crossing}


def run_body(
    program: Program,
    crossing: Values,
    fire: Callable[[torch.fx.Node, torch.Tensor], torch.Tensor],
    after: Callable[[torch.fx.Node, Values], None] | None = None,
    instead: Mapping[torch.fx.Node, Callable[..., torch.Tensor]] | None = None,
) -> torch.Tensor:
    """Run the body once. `fire(marker, value)` stands at every site; `after(node, values)` sees each value computed;
    `instead` has what computes a node, where not its own operator does."""
    values, apply = dict(crossing), products.applied()
    scaled = program.scaled if after is None and apply is products.as_it_is else {}
    deferred, instead = set(scaled.values()), instead or {}
    for node in program.body:
        if ops.is_site(node):
            values[node] = fire(node, values[node.args[0]])  # type: ignore[index]
        elif node in deferred:
            values[node] = arguments(node, values)[0]
        elif node in scaled:
            values[node] = products.scaled(*values[scaled[node]], node.args[1])  # type: ignore[arg-type]
        else:
            values[node] = apply(instead.get(node, node.target), *arguments(node, values))
        if after is not None:
            after(node, values)
        for dead in program.dead_after.get(node, ()):
            del values[dead]
    return values[program.result]


def batch_axis(node: torch.fx.Node) -> int | None:
    """Where a value has its batch. None where it has no such dimension, or where that is not known (a model captured
    for one batch size, a value with its batch in two dimensions): `is_shared` tells which."""
    axis = node.meta.get("batch_axis")
    return None if axis is None or axis < 0 else axis


def is_shared(node: torch.fx.Node) -> bool:
    """Whether a value has no batch dimension: all samples of a batch have it together."""
    return node.meta.get("batch_axis", -1) is None


def require_finite(site: str, value: torch.Tensor) -> None:
    """A neuron would turn NaN into silence and the output would look sound."""
    if value.numel() and not all(abs(float(bound)) < float("inf") for bound in torch.aminmax(value)):
        raise DataError(f"site {site} received NaN or infinity; check the inputs, or run the model in a wider dtype")


def call(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
    args, kwargs = arguments(node, values)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def arguments(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)  # type: ignore[return-value]


def fetch(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
