"""Parallel conversion."""

from __future__ import annotations

from dataclasses import replace

from ..neurons import Parallel
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def parallel(
    *,
    levels: int = 8,
    percentile: float = 0.999,
    rule: str = "percentile",
    granularity: str = "tensor",
    sequential: bool = False,
    correction: str = "none",
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Parallel conversion: all spikes of a window of T = `levels` time-steps at once, in closed form, layer by layer.

    Source: Hao et al., ICML 2025, arXiv 2412.13610. Differences: a recipe is one T, because ranges fit a T; the neuron
    reads the activation (behind ReLU); one threshold per tensor; where an activation has both signs, so has the neuron.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    ranges = range_rule(rule, percentile, False, granularity)
    recipe = Recipe("parallel", Parallel(levels), ranges, policy, product_terms=2, steps=1)
    return replace(recipe, correction=correction, sequential=sequential)
