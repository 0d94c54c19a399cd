"""SpikingModel -> the linear layers that a folded run computes from spikes instead of running means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.fx

from ._count import batch_axis
from ._execute import fetch
from .neurons import fits, one_number
from .products import linear_of_spikes, refusal

if TYPE_CHECKING:
    from ._model import SpikingModel


@dataclass(frozen=True)
class Spoken:
    """sites -- whose neurons say what they emit in a step, not their mean. layers -- what computes their readers."""

    sites: frozenset[torch.fx.Node] = frozenset()
    layers: Mapping[torch.fx.Node, Callable[..., torch.Tensor]] = field(default_factory=dict)


def from_spikes(model: SpikingModel, steps: int) -> Spoken:
    """Every site whose neurons emit one bfloat16 number a step and whose readers are all linear layers with float32
    weights. None where the processor has no matrix units for that."""
    if refusal(model.device):
        return Spoken()
    sites: set[torch.fx.Node] = set()
    layers: dict[torch.fx.Node, Callable[..., torch.Tensor]] = {}
    for marker, readers in model.program.fed.items():
        neuron, threshold = model.neurons[str(marker.args[1])], model.thresholds[str(marker.args[1])]
        weights = {_dtype(model, constant) for node in readers for constant in node.args[1:] if constant is not None}
        if weights == {torch.float32} and fits(neuron, threshold) and one_number(neuron, threshold):
            layer = partial(linear_of_spikes, steps=steps, rate=neuron.code == "rate", outer=_before_time(marker))
            layers.update(dict.fromkeys(readers, layer))
            sites.add(marker)
    return Spoken(frozenset(sites), layers)


def _before_time(marker: torch.fx.Node) -> int:
    """How often a site's tensor, as the folded run has it, goes through all steps: the sizes before its batch."""
    return math.prod(int(size) for size in marker.meta["val"].shape[: batch_axis(marker)])


def _dtype(model: SpikingModel, constant: torch.fx.Node) -> torch.dtype:
    return fetch(model.program.module, str(constant.target)).dtype
