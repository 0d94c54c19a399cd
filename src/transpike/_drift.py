"""SpikingModel, batch -> Drift: the network in spikes held against the fast simulator, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.fx

from ._execute import run_body, run_prefix
from ._literal import Literal, Spikes
from ._model import SpikingModel
from ._normalise import retarget
from ._state import State
from .measure.drift import Drift
from .neurons import advance, spikes_in


@torch.no_grad()
def drift(
    model: SpikingModel,
    inputs: Any,
    *,
    steps: int,
    state: State | None = None,
    check: bool = False,
    after: Callable[[State], None] | None = None,
) -> tuple[Drift, State]:
    """Run one batch both ways, and compare after each step every output and what every neuron emitted.

    In float64 they agree but for the last digits; in float32 they round differently, and a membrane near a boundary may
    fire another level.
    Arguments: state -- goes on behind its step. check -- as for `Literal`. after -- gets the state each step leaves.
    Raises: as `Literal.run`.
    """
    first = 0 if state is None else state.t
    fast = None
    outputs, wrong, spikes, scale, neurons = [], [], [], 0.0, 0
    for step in Literal(model, check=check).walk(inputs, steps=steps, state=state):
        fast = fast or _Fast(model, inputs, first)
        own, emitted = fast.step(step.t)
        outputs.append(float((own - step.output).abs().max()))
        scale = max(scale, float(own.abs().max()))
        wrong.append(sum(_different(emitted[site], literal) for site, literal in step.emitted.items()))
        spikes.append(sum(int(spikes_in(trains).sum()) for trains in emitted.values()))
        neurons = sum(trains[0].numel() for trains in emitted.values())
        state = step.state
        if after is not None:
            after(state)
    assert state is not None
    found = Drift("network in spikes", tuple(outputs), scale, tuple(wrong), tuple(spikes), neurons, first + 1)
    return found, state


def _different(trains: list[torch.Tensor], literal: Spikes) -> int:
    """How many neurons emitted another amount, or as much in another number of spikes. Amounts are sums of levels and
    may round, so they differ when they are half a smallest level apart."""
    apart = (torch.stack(trains).sum(0) - literal.value).abs()
    otherwise = spikes_in(trains) != literal.channels.sum(0)
    return int(((apart > min(map(abs, literal.amplitudes), default=0.0) / 2) | otherwise).sum())


class _Fast:
    """The streaming simulator, which keeps what each site emitted; it stands behind step `first`."""

    def __init__(self, model: SpikingModel, inputs: Any, first: int) -> None:
        self.model = model
        self.crossing = run_prefix(model.program, model.prepare(inputs))
        self.sums: dict[str, torch.Tensor] = {}
        for t in range(1, first + 1):
            self.step(t)

    def step(self, t: int) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        emitted: dict[str, list[torch.Tensor]] = {}

        def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            site = str(marker.args[1])
            neuron, threshold = self.model.neurons[site], self.model.thresholds[site]
            self.sums[site], out, emitted[site] = advance(neuron, self.sums.get(site), t, value, threshold)
            return out

        return run_body(self.model.program, self.crossing, fire), emitted


def widen(model: SpikingModel) -> SpikingModel:
    """The network, changed in place to compute in float64 throughout: weights, inputs, and the casts to float32 that
    norms of language models make, which would hide differences below 1e-7."""
    narrow = (torch.float16, torch.bfloat16, torch.float32)
    model.to(torch.float64)
    model.captured = replace(
        model.captured,
        inputs=tuple(replace(s, dtype=torch.float64) if s.dtype in narrow else s for s in model.captured.inputs),
    )
    for node in model.program.module.graph.nodes:
        retarget(node, lambda argument: torch.float64 if argument in narrow else argument)
    return model
