"""Weight layers and neurons of a converted network, as NIR nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from ..errors import ModelError
from ..neurons import plain
from ..types import Layer
from .layers import WeightLayer, bound, weight_layer
from .nir_draft import Draft, Signal
from .nir_neuron import neuron_graph
from .nir_operators import pair

if TYPE_CHECKING:
    from .._model import SpikingModel

aten = torch.ops.aten
LINEAR = (aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default)
CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)


def folded_layer(model: SpikingModel, layer: Layer, node: torch.fx.Node) -> WeightLayer:
    return weight_layer(model, layer, node, fold_batch_norm=True)


def write_neuron(
    model: SpikingModel, draft: Draft, marker: torch.fx.Node, signal: Signal, sites: dict[str, str]
) -> Signal:
    """Add the sub-graph of a site, which takes in a ReLU before it, and note its name in `sites`."""
    name = str(marker.args[1])
    neuron, threshold = model.neurons[name], model.thresholds[name]
    if plain(neuron) is not neuron:
        raise ModelError(
            f"site {name} has thresholds by neuron, which this export cannot write; convert with another recipe"
        )
    relu = bool(signal.relu)
    made = neuron_graph(neuron, threshold, signal.shape, draft.dtype, site=name, behind_relu=relu)
    node = draft.add(name, made, signal.shape, *signal.sources)
    sites[node] = name
    return Signal((node,), signal.shape)


def write_layer(draft: Draft, layer: WeightLayer, signal: Signal) -> Signal:
    """A linear layer on a vector or on every column of [features, n], or a convolution of 1 or 2 dimensions."""
    node = layer.node
    if node.target in CONV and layer.layer.signal_position == 0:
        return _write_conv(draft, layer, signal)
    if node.target not in LINEAR or layer.layer.signal_position != 0 or layer.weight.dim() != 2:
        raise ModelError("not a linear or 1- or 2-dimensional convolution layer")
    arguments = bound(node)
    if arguments.get("alpha", 1) != 1 or arguments.get("beta", 1) != 1:
        raise ModelError("a linear layer with alpha or beta")
    weight = layer.weight if node.target is aten.linear.default else layer.weight.t()
    if len(signal.shape) not in (1, 2) or signal.shape[0] != weight.shape[1]:
        raise ModelError(f"a linear layer along the last axis of {signal.shape}, where NIR has layers on vectors")
    if layer.bias is not None and layer.bias.shape != weight.shape[:1]:
        raise ModelError(f"a bias of shape {tuple(layer.bias.shape)}")
    return draft.linear(layer.layer.name, signal, weight, layer.bias)


def _write_conv(draft: Draft, layer: WeightLayer, signal: Signal) -> Signal:
    weight, geometry = layer.weight, layer.geometry
    axes = weight.dim() - 2
    if len(signal.shape) != axes + 1:
        raise ModelError(f"a convolution of a tensor of shape {signal.shape}")
    if len(set(weight.shape[2:])) != 1:
        raise ModelError(f"a kernel of {' x '.join(map(str, weight.shape[2:]))}, where nir takes kernels for square")
    stride, dilation = (_per_axis(geometry[key], axes) for key in ("stride", "dilation"))
    padding: Any = geometry["padding"]
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(r % 2 for r in reach):
            raise ModelError("padding 'same' that is not the same on both sides")
        padding = [r // 2 for r in reach]
    padding = _per_axis(0 if padding == "valid" else padding, axes)
    weight = without_groups(weight, int(geometry["groups"]))
    return draft.conv(layer.layer.name, signal, weight, layer.bias, stride=stride, padding=padding, dilation=dilation)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return pair(value) if axes == 2 else pair(value)[:1]


def without_groups(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """The same convolution with zeros between groups: nir types a grouped one as if it read one group's channels."""
    if groups == 1:
        return weight
    out, inside = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(weight.shape[0], inside * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * out, (group + 1) * out)
        whole[rows, group * inside : (group + 1) * inside] = weight[rows]
    return whole
