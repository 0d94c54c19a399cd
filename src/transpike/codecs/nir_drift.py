"""How far a NIR graph, run as written, is from the network it was written from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from .._arguments import require_count
from .._execute import require_finite, run_body, run_prefix
from ..measure.drift import Drift
from .nir_file import facts
from .nir_run import run_nir

if TYPE_CHECKING:
    import nir

    from .._model import SpikingModel


@torch.no_grad()
def drift(model: SpikingModel, graph: nir.NIRGraph, inputs: Any, *, steps: int) -> Drift:
    """Run the network and the graph side by side on one batch. Raises ConfigError for steps < 1, DataError for NaN or
    infinity at a site."""
    require_count("steps", steps)
    known, leaves = facts(graph), model.prepare(inputs)
    crossing = run_prefix(model.program, leaves)
    state: dict[str, torch.Tensor] = {}
    emitted: dict[str, torch.Tensor] = {}
    outputs, wrong, spikes, scale = [], [], [], 0.0
    total: Any = 0.0
    for t, given in enumerate(run_nir(graph, leaves[0].cpu(), steps=steps), 1):

        def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            site = str(marker.args[1])
            require_finite(site, value)
            rule, threshold = model.neurons[site], model.thresholds[site]
            state[site], out, emitted[site] = rule.step(state.get(site), t, value, threshold)  # noqa: B023
            return out

        own = run_body(model.program, crossing, fire).cpu()
        total = total + given["output"]
        carried = total / t if known["code"] == "rate" else total
        outputs.append(float((own - carried).abs().max()))
        scale = max(scale, float(own.abs().max()))
        pairs = [(given[f"{node}/output"], emitted[site].cpu()) for node, site in known["sites"].items()]
        wrong.append(sum(int((a != b).sum()) for a, b in pairs))
        spikes.append(sum(int((b != 0).sum()) for _, b in pairs))
    neurons = sum(value.numel() for value in emitted.values())
    return Drift("NIR graph", tuple(outputs), scale, tuple(wrong), tuple(spikes), neurons)
