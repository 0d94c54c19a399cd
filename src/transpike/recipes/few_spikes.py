"""Few-spikes (phase) code."""

from __future__ import annotations

from dataclasses import replace

from ..neurons import FewSpikes
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def few_spikes(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    granularity: str = "tensor",
    sequential: bool = False,
    correction: str = "none",
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Few-spikes (phase) code, the field's binary-weighted reference: K digits within one step, about K/2 spikes.

    Source: Stoeckl and Maass 2021; LAS, arXiv 2505.09659. Differences: base 2 throughout, one bank per site (no outlier
    bank), nonlinear operators stay exact.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    ranges = range_rule(rule, percentile, True, granularity)
    recipe = Recipe("few-spikes", FewSpikes(levels), ranges, policy, product_terms=2, steps=1)
    return replace(recipe, correction=correction, sequential=sequential)
