"""ECMT as its paper has it."""

from __future__ import annotations

from ..neurons import MultiThreshold
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def ecmt(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    granularity: str = "tensor",
    sequential: bool = False,
    correction: str = "none",
    symmetric: bool = False,
    cutoff: float = 1.0,
    steps: int = 8,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """ECMT as the paper has it: the calibrated base is the largest level, the nearest level fires.

    Source: arXiv 2502.21193. Left open there and chosen here: the percentile (1, the maximum: what a ceiling clips, no
    number of steps brings back), one threshold per sign and tensor, a neuron before the head, ties to the larger
    level, thresholds rounded up to 8 significant bits. Best measured settings: symmetric=True, cutoff=0.5, levels=10.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, ranges = MultiThreshold(levels, cutoff), range_rule(rule, percentile, symmetric, granularity)
    return Recipe("ecmt", neuron, ranges, policy, steps=steps, correction=correction, sequential=sequential)
