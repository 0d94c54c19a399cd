"""Residual cascade."""

from __future__ import annotations

from dataclasses import replace

from ..neurons import Differential
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def cascade(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    granularity: str = "tensor",
    sequential: bool = False,
    correction: str = "none",
    cutoff: float = 0.5,
    pulses: int = 6,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Residual cascade: a neuron fires several times within a step, each time at what is left; one step is enough.

    Source: harmony multi-threshold neurons (AAAI 2026). Differences: one signed neuron, the nearest power of two of
    either sign first, up to `pulses` firings; the range is the largest magnitude; products in two terms.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, ranges = Differential(levels, cutoff, pulses), range_rule(rule, percentile, True, granularity)
    recipe = Recipe("cascade", neuron, ranges, policy, product_terms=2, steps=1)
    return replace(recipe, correction=correction, sequential=sequential)
