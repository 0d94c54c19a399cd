"""What an exporter needs to know of a converted network: constants, weight layers, what happens to every operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from torch.fx.node import map_arg

from .. import ops
from .._execute import Program, call, fetch
from ..errors import ModelError
from ..types import Layer, Role

if TYPE_CHECKING:
    from .._model import SpikingModel

aten = torch.ops.aten
FOLDS = (
    aten.linear.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
)


@dataclass(frozen=True)
class WeightLayer:
    """A weight layer with its numbers: `geometry` holds the operator's other arguments (stride, padding, groups, ...),
    `batch_norm` the operator folded into weight and bias, if any."""

    layer: Layer
    node: torch.fx.Node
    weight: torch.Tensor
    bias: torch.Tensor | None
    geometry: dict[str, Any]
    batch_norm: torch.fx.Node | None

    @property
    def site(self) -> str | None:
        return self.layer.operands[self.layer.signal_position].site


def bound(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names of its schema, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)
    found = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def literals(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments that are neither tensors nor None, as JSON values."""
    return {name: _plain(value) for name, value in bound(node).items() if not _has_node(value) and value is not None}


def _has_node(value: Any) -> bool:
    found: list[Any] = []
    map_arg(value, found.append)
    return bool(found)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # JSON has no infinity
        return str(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def constant(program: Program, node: Any) -> torch.Tensor:
    """The value of a node that is the same for every input. Raises ModelError for one that is not."""
    if not isinstance(node, torch.fx.Node):
        return torch.as_tensor(node)
    if node.op == "get_attr":
        return fetch(program.module, str(node.target))
    if node.op != "call_function" or ops.is_site(node):
        raise ModelError(f"{node.name} depends on the input")
    return call(node, {operand: constant(program, operand) for operand in node.all_input_nodes})


def foldable(node: torch.fx.Node) -> torch.fx.Node | None:
    """The batch normalisation that alone reads a linear or convolution layer, or None."""
    if node.target not in FOLDS or len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    flat = node.target is not aten.linear.default or node.meta["val"].dim() == 2
    reads = reader.target is aten.batch_norm.default and reader.args[0] is node
    return reader if flat and reads else None


def batch_norm_as_affine(program: Program, node: torch.fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """gain, shift per channel, float64: batch_norm(x) = gain x + shift."""
    arguments = bound(node)
    mean, variance = (constant(program, arguments[key]).double() for key in ("running_mean", "running_var"))
    gain = (variance + arguments["eps"]).rsqrt()
    if arguments["weight"] is not None:
        gain = gain * constant(program, arguments["weight"]).double()
    shift = -mean * gain
    if arguments["bias"] is not None:
        shift = shift + constant(program, arguments["bias"]).double()
    return gain, shift


def weight_layer(model: SpikingModel, layer: Layer, node: torch.fx.Node, *, fold_batch_norm: bool) -> WeightLayer:
    """Raises ModelError when the weight is not a constant."""
    arguments, pair = bound(node), ops.factors(node)
    weight = constant(model.program, pair[1 - layer.signal_position])  # type: ignore[index]
    added = arguments.get("bias", arguments.get("self") if "addmm" in str(node.target) else None)
    bias = None if added is None else constant(model.program, added)
    norm = foldable(node) if fold_batch_norm else None
    if norm is not None:
        gain, shift = batch_norm_as_affine(model.program, norm)
        scaled = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
        shift = shift if bias is None else shift + bias.double() * gain
        weight, bias = scaled.to(weight.dtype), shift.to(weight.dtype)
    return WeightLayer(layer, node, weight.detach(), None if bias is None else bias.detach(), literals(node), norm)


def weight_layers(model: SpikingModel, *, fold_batch_norm: bool = False) -> tuple[list[WeightLayer], dict[str, str]]:
    """Every layer with constant weights in graph order; and, by node, why a weight layer has none."""
    by_node = {layer.node: layer for layer in model.plan.layers if layer.role is Role.WEIGHT and any(layer.signals)}
    found: list[WeightLayer] = []
    without: dict[str, str] = {}
    for node in model.program.module.graph.nodes:
        layer = by_node.get(node.name)
        if layer is None:
            continue
        try:
            found.append(weight_layer(model, layer, node, fold_batch_norm=fold_batch_norm))
        except ModelError as error:
            without[node.name] = f"weight not constant: {error}"
    return found, without


WORDS = {
    Role.NONLINEAR: "compensated",
    Role.PRODUCT: "compensated product",
    Role.UNKNOWN: "compensated (no rule)",
    Role.CONSTANT: "constant",
    Role.STRUCTURAL: "rearranged",
    Role.AFFINE: "affine",
}


def treatments(model: SpikingModel) -> dict[str, str]:
    """What happens to every call node of the marked graph, by node name."""
    roles = {operator.node: operator.role for operator in model.plan.operators}
    layers = {layer.node: layer for layer in model.plan.layers}
    found = {}
    for node in model.program.module.graph.nodes:
        if node.op != "call_function":
            continue
        layer = layers.get(node.name)
        if ops.is_site(node):
            found[node.name] = "neuron"
        elif layer is not None and not layer.spiking:
            found[node.name] = f"analog ({layer.reason})"
        elif layer is not None:
            found[node.name] = "spiking product" if layer.role is Role.PRODUCT else "spiking"
        else:  # copies of rearrangements behind a site are not in the plan
            role = roles.get(node.name, Role.STRUCTURAL if node.target in ops.RULES else Role.CONSTANT)
            found[node.name] = WORDS.get(role, str(role))
    return found
