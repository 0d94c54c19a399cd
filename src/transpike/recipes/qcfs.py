"""Integrate and fire behind a clipped activation."""

from __future__ import annotations

from dataclasses import replace

from ..neurons import MultiThreshold
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def qcfs(
    *,
    percentile: float = 0.999,
    rule: str = "percentile",
    granularity: str = "tensor",
    sequential: bool = False,
    correction: str = "none",
    steps: int = 8,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Integrate-and-fire neurons that start half charged, as a network trained with the QCFS activation is run.

    A potential of theta/2 at the start and a threshold of theta is a tracking quantiser that fires at theta/2, so the
    neuron is the multi-threshold one with one level; on a constant input it gives, as in the paper's theorem,
    M_out(T) = theta/T clip(floor(T x / theta + 1/2), 0, T).
    Source: Bu et al., ICLR 2022, arXiv 2303.04347. Differences: the neuron reads the activation (behind ReLU), not the
    pre-activation; where an activation has both signs, so has the neuron; theta is a percentile, not trained.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    ranges = range_rule(rule, percentile, False, granularity)
    recipe = Recipe("qcfs", MultiThreshold(1, 0.5), ranges, policy, steps=steps)
    return replace(recipe, correction=correction, sequential=sequential)
