"""A network in which nobody would fire again stays as it is: SpikingModel -> whether the steps that follow must run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .neurons import Neuron, plain
from .types import Threshold

if TYPE_CHECKING:
    from ._model import SpikingModel

# Steps from which on streaming until a network rests is sooner done than all of them folded (docs/speed.md).
WORTH_WAITING = 4


@dataclass
class Rest:
    """Whether nobody would fire in a step after this one; asked of every neuron until one of them would.

    A neuron's step under a sum code depends on its state and input alone, so a step on the same input in which no state
    changes is followed by others like it: all values stay what they are, to the last bit.
    """

    holds: bool

    def ask(
        self,
        run: Callable[..., Any],
        neuron: Neuron,
        state: torch.Tensor,
        t: int,
        mean_in: torch.Tensor,
        threshold: Threshold,
        *,
        count: bool,
    ) -> None:
        """`state` is what step t left, `mean_in` what it read. Neurons that cannot say fire once more, for the answer
        alone."""
        if not self.holds:
            return
        own, frame = plain(neuron), getattr(neuron, "frame", None)
        if hasattr(own, "is_silent"):
            drive = mean_in.to(state.dtype) if frame is None else frame.enter(mean_in)
            left = drive - state if drive is mean_in else drive.sub_(state)  # nobody else has what was made here
            self.holds = own.is_silent(left, threshold)
        else:
            after, _, spikes = run(neuron, state.clone(), t + 1, mean_in, threshold, count=count)
            self.holds = torch.equal(after, state) and not (spikes is not None and bool(spikes.any()))


def can_rest(model: SpikingModel) -> bool:
    return all(neuron.code == "sum" for neuron in model.neurons.values())


def rests_soon(model: SpikingModel, steps: int) -> bool:
    """Whether its neurons have said everything well before that many steps, by firing several times in each. Those
    that fire at half their smallest level go back and forth halfway between two. Of fewer than four steps one must do:
    signed powers of two that say a number are mostly two levels apart, so half as many firings as levels."""
    neurons = model.neurons.values()
    early = all(neuron.pulses > 1 and getattr(neuron, "cutoff", 1.0) > 0.5 for neuron in neurons)
    at_once = all(hasattr(plain(neuron), "is_silent") and 2 * neuron.pulses >= neuron.levels - 1 for neuron in neurons)
    return can_rest(model) and early and steps >= (2 if at_once else WORTH_WAITING)
