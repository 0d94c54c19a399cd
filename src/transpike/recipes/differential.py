"""Differential coding."""

from __future__ import annotations

from ..neurons import Differential
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def differential(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    granularity: str = "tensor",
    sequential: bool = False,
    correction: str = "none",
    cutoff: float = 0.5,
    steps: int = 8,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Differential coding: spikes carry corrections of a running estimate, so the error shrinks by a factor a step.

    Source: DCGS, arXiv 2503.00301, in running-estimate form. Differences: levels are powers of two below the largest
    activation magnitude, the same for both signs (overshoots must be taken back), and not the fixed point of the paper.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, ranges = Differential(levels, cutoff), range_rule(rule, percentile, True, granularity)
    return Recipe("differential", neuron, ranges, policy, steps=steps, correction=correction, sequential=sequential)
