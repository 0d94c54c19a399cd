"""Marked graph, recipe, samples -> ranges of all sites, each from what the converted sites before it let through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.fx

from .. import ops
from .._execute import call, cut, run_prefix
from .._plan import Plan
from ..errors import CalibrationError
from ..neurons import Neuron, fire_once, framed
from ..observers import Histogram
from ..recipes import Recipe
from ..types import Site, Threshold
from .fine import fine_of, fitted
from .range import Range, range_of, watcher


@torch.no_grad()
def sequential(
    marked: torch.fx.GraphModule, plan: Plan, recipe: Recipe, batches: Iterable[tuple[tuple[torch.Tensor, ...], int]]
) -> dict[str, Range]:
    """Sites in the order of the graph: each is ranged, converted, and lets through what its neurons mean after
    `recipe.steps` steps of an input held constant; so a site sees the errors of those before it.

    Arguments: batches -- (inputs, samples). All go through the graph side by side, node by node, in one pass, so what
    is alive at one node is in memory for all samples at once: for a Transformer two or three activations.
    Source: the sequential calibration of quantisation toolkits (GPTQ, AdaRound), which goes block by block.
    Raises: CalibrationError for a site that sees nothing, NaN or infinity, naming it.
    """
    program, sites = cut(marked), {site.name: site for site in plan.sites}
    runs = [run_prefix(program, leaves) for leaves, _ in batches]
    found: dict[str, Range] = {}
    for node in program.body:
        site = sites.get(str(node.args[1])) if ops.is_site(node) else None
        if site is not None:
            ranged = found[site.name] = _range(site, recipe, [values[node.args[0]] for values in runs])  # type: ignore[index]
            own = recipe.neuron_for(site)
            own = own if ranged.levels is None else replace(own, levels=ranged.levels)  # type: ignore[type-var]
            neuron = framed(own, ranged.frame and ranged.frame.to(_device(marked)))
        for values in runs:
            values[node] = call(node, values)
            if site is not None:
                values[node] = held(neuron, values[node], ranged.threshold, recipe.steps)
            for dead in program.dead_after.get(node, ()):
                del values[dead]
    return found


def held(neuron: Neuron, value: torch.Tensor, threshold: Threshold, steps: int) -> torch.Tensor:
    """M_out(T) of an input held constant."""
    state, out = None, value
    for t in range(1, steps + 1):
        state, out, _ = fire_once(neuron, state, t, value, threshold, count=False)
    return out.to(value.dtype)


def _range(site: Site, recipe: Recipe, seen: list[torch.Tensor]) -> Range:
    found = _coarse(site, recipe, seen)
    fine = fine_of(site, recipe, found.threshold)
    if fine is None:
        return found
    fine = fitted(fine, seen)
    same = fine.neuron == recipe.neuron_for(site)
    return Range(found.threshold, fine.frame if fine.frame.tensors() else None, None if same else fine.neuron.levels)


def _coarse(site: Site, recipe: Recipe, seen: list[torch.Tensor]) -> Range:
    if recipe.choice(site).threshold is not None:
        return range_of(site, recipe, None)
    histogram = Histogram()
    if not all(histogram.update(value) for value in seen):
        raise CalibrationError(f"site {site.name} saw NaN or infinity behind the converted sites before it")
    if not histogram.count:
        raise CalibrationError(f"no data reached site {site.name}; give it a threshold or keep its layer analog")
    largest = watcher(site, recipe.choice(site), histogram.count)
    if largest is not None:
        for value in seen:
            largest.update(value)
    return range_of(site, recipe, histogram, largest)


def _device(marked: torch.fx.GraphModule) -> torch.device:
    return next((p.device for p in marked.parameters()), torch.device("cpu"))
