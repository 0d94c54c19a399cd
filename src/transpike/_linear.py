"""SpikingModel -> what computes its linear layers in a compiled run: spikes, or running means in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.fx

from ._execute import batch_axis, fetch, is_constant_linear
from .neurons import fits, one_number
from .products import linear_of_means, linear_of_spikes, refusal

if TYPE_CHECKING:
    from ._model import SpikingModel


@dataclass(frozen=True)
class Linear:
    """sites -- whose neurons say what they emit in a step, not their mean. layers -- by linear layer, what computes
    it."""

    sites: frozenset[torch.fx.Node] = frozenset()
    layers: Mapping[torch.fx.Node, Callable[..., torch.Tensor]] = field(default_factory=dict)

    def __str__(self) -> str:
        means = sum(layer is linear_of_means for layer in self.layers.values())
        counts = {"from spikes": len(self.layers) - means, "in parts": means}
        return "".join(f", {count} linear layers {how}" for how, count in counts.items() if count)


def linear_layers(model: SpikingModel, steps: int | None) -> Linear:
    """Every linear layer with constant float32 weights, where the processor has matrix units for it. From spikes: in a
    folded run of `steps`, if what it reads are neurons that emit one bfloat16 number a step and nothing else reads
    them."""
    if refusal(model.device):
        return Linear()
    program, crossing = model.program, set(model.program.crossing)
    known = {node for node in program.body if is_constant_linear(node, crossing) and _is_float32(model, node)}
    layers: dict[torch.fx.Node, Callable[..., torch.Tensor]] = dict.fromkeys(known, linear_of_means)
    sites: set[torch.fx.Node] = set()
    for marker, readers in program.fed.items() if steps else ():
        neuron, threshold = model.neurons[str(marker.args[1])], model.thresholds[str(marker.args[1])]
        if known.issuperset(readers) and fits(neuron, threshold) and one_number(neuron, threshold):
            layer = partial(linear_of_spikes, steps=steps, rate=neuron.code == "rate", outer=_before_time(marker))
            layers.update(dict.fromkeys(readers, layer))
            sites.add(marker)
    return Linear(frozenset(sites), layers)


def _before_time(marker: torch.fx.Node) -> int:
    """How often a site's tensor, as the folded run has it, goes through all steps: the sizes before its batch."""
    return math.prod(int(size) for size in marker.meta["val"].shape[: batch_axis(marker)])


def _is_float32(model: SpikingModel, layer: torch.fx.Node) -> bool:
    constants = [constant for constant in layer.args[1:] if isinstance(constant, torch.fx.Node)]
    return {fetch(model.program.module, str(constant.target)).dtype for constant in constants} == {torch.float32}
