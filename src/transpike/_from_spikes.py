"""SpikingModel -> the linear layers that a folded run computes from spikes instead of running means."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from ._count import batch_axis
from ._execute import fetch
from .neurons import Before, fits, one_number
from .products import linear_of_spikes, refusal

if TYPE_CHECKING:
    from ._model import SpikingModel

aten = torch.ops.aten

# Element by element, and nothing but their input.
ACTIVATIONS = (aten.gelu.default, aten.relu.default, aten.silu.default)


@dataclass(frozen=True)
class Spoken:
    """sites -- whose neurons say what they emit in a step, not their mean; with the activation function that they take
    along, if any. instead -- what computes nodes: linear layers from spikes, and activations that are taken along not
    at all. layers -- how many linear layers."""

    sites: Mapping[torch.fx.Node, Before | None] = field(default_factory=dict)
    instead: Mapping[torch.fx.Node, Callable[..., torch.Tensor]] = field(default_factory=dict)
    layers: int = 0


def from_spikes(model: SpikingModel, steps: int) -> Spoken:
    """Every site whose neurons emit one bfloat16 number a step and whose readers are all linear layers with float32
    weights. None where the processor has no matrix units for that."""
    if refusal(model.device):
        return Spoken()
    sites: dict[torch.fx.Node, Before | None] = {}
    layers: dict[torch.fx.Node, Callable[..., torch.Tensor]] = {}
    skipped: dict[torch.fx.Node, Callable[..., torch.Tensor]] = {}
    for marker, readers in model.program.fed.items():
        neuron, threshold = model.neurons[str(marker.args[1])], model.thresholds[str(marker.args[1])]
        weights = {_dtype(model, constant) for node in readers for constant in node.args[1:] if constant is not None}
        if weights == {torch.float32} and fits(neuron, threshold) and one_number(neuron, threshold):
            layer = partial(linear_of_spikes, steps=steps, rate=neuron.code == "rate", outer=_before_time(marker))
            layers.update(dict.fromkeys(readers, layer))
            sites[marker] = _activation(marker, model.program.crossing)
            if sites[marker] is not None:
                skipped[marker.args[0]] = _unchanged  # type: ignore[index]
    return Spoken(sites, {**layers, **skipped}, len(layers))


def _activation(marker: torch.fx.Node, once: Container[torch.fx.Node]) -> Before | None:
    """The activation function that computes a site's value, if nobody else reads that, and not only once for all
    steps."""
    node: torch.fx.Node = marker.args[0]  # type: ignore[assignment]
    alone = node.target in ACTIVATIONS and len(node.users) == len(node.args) == 1 and node not in once
    return (node.target, tuple(node.kwargs.items())) if alone else None


def _unchanged(value: torch.Tensor, **_: Any) -> torch.Tensor:
    return value


def _before_time(marker: torch.fx.Node) -> int:
    """How often a site's tensor, as the folded run has it, goes through all steps: the sizes before its batch."""
    return math.prod(int(size) for size in marker.meta["val"].shape[: batch_axis(marker)])


def _dtype(model: SpikingModel, constant: torch.fx.Node) -> torch.dtype:
    return fetch(model.program.module, str(constant.target)).dtype
