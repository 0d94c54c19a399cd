"""SpikingModel -> the linear layers that a folded run computes from spikes instead of running means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

Layers = Mapping[torch.fx.Node, Callable[..., torch.Tensor]]


def layers_of_spikes(model: SpikingModel, steps: int) -> Layers:
    """By node, what computes it: of every site whose neurons emit one bfloat16 number a step and whose readers are all
    linear layers with float32 weights. None where the processor has no matrix units for that."""
    if refusal(model.device):
        return {}
    found: dict[torch.fx.Node, Callable[..., torch.Tensor]] = {}
    for marker, readers in model.program.fed.items():
        neuron, threshold = model.neurons[str(marker.args[1])], model.thresholds[str(marker.args[1])]
        weights = {_dtype(model, constant) for node in readers for constant in node.args[1:] if constant is not None}
        exact = weights == {torch.float32} and fits(neuron, threshold) and one_number(neuron, threshold)
        if exact and batch_axis(marker) == 0:
            found.update(dict.fromkeys(readers, partial(linear_of_spikes, steps=steps, rate=neuron.code == "rate")))
    return found


def _dtype(model: SpikingModel, constant: torch.fx.Node) -> torch.dtype:
    return fetch(model.program.module, str(constant.target)).dtype
