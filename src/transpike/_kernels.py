"""SpikingModel -> how a run computes: neurons in one compiled pass or step by step, linear layers on matrix units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from ._linear import Linear, linear_layers
from .neurons import Neuron, choose, compiled_once, compiled_trajectory, fire_once, fits, trajectory
from .types import Threshold

if TYPE_CHECKING:
    from ._model import SpikingModel


@dataclass(frozen=True)
class Kernels:
    """neurons -- "compiled", or "eager" with the reason. linear -- what computes linear layers, where not PyTorch.
    watched -- what sites receive is looked at for NaN and infinity; compiled neurons give NaN for both, so that it is
    enough to look at the output, where nothing can hide it."""

    neurons: str = "eager"
    linear: Linear = field(default_factory=Linear)
    watched: bool = True

    @property
    def compiled(self) -> bool:
        return self.neurons == "compiled"

    def of_all_steps(self, neuron: Neuron, threshold: Threshold) -> Callable[..., Any]:
        return compiled_trajectory if self.compiled and fits(neuron, threshold) else trajectory

    def of_one_step(self, neuron: Neuron, threshold: Threshold) -> Callable[..., Any]:
        return compiled_once if self.compiled and fits(neuron, threshold) else fire_once

    def __str__(self) -> str:
        return self.neurons + str(self.linear)


EAGER = Kernels()


def choose_kernels(
    model: SpikingModel, asked: str | None, precision: str, *, samples: int, steps: int, folded: bool
) -> Kernels:
    """As asked for, or else by the model's own choice; what is chosen already stays."""
    asked = asked or model.kernel
    work = model.neurons_per_sample * samples * steps
    chosen = Kernels(asked if asked.startswith("eager (") else choose(asked, work, model.device))
    if not chosen.compiled:
        return chosen
    linear = linear_layers(model, steps if folded else None) if precision == "float32" else Linear()
    return Kernels(chosen.neurons, linear, watched=may_hide_nan(model))


def may_hide_nan(model: SpikingModel) -> bool:
    """Whether the output may look sound although a site received NaN: what follows from a site is a condition, an index
    or a count somewhere, which no NaN gets through, or there is an operator that takes it away or is not known."""
    hidden = any(node.target is torch.ops.aten.nan_to_num.default or _is_whole(node) for node in model.program.body)
    return hidden or bool(model.plan.unknown)


def _is_whole(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point()
