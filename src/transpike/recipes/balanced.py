"""Balanced thresholds, ours."""

from __future__ import annotations

from ..neurons import Differential
from ..observers import Balanced
from ..policy import Policy
from .recipe import Recipe


def balanced(
    *,
    divergence: float = 0.001,
    energy: float | None = None,
    granularity: str = "neuron",
    cutoff: float = 0.75,
    pulses: int = 8,
    correction: str = "none",
    steps: int = 1,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Ours: the cascade with thresholds and levels of all sites balanced: a given error for the fewest operations.

    `divergence` is the KL divergence from the source's prediction, in nats, that conversion may cause; or `energy` the
    share of the source's energy (the paper's account) it may spend. See `observers.Balanced`. The cutoff of 3/4 leaves
    unsaid what a spike would shrink by less than a factor of 3. Eight firings say all in the first step of every
    network we measured.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, rule = Differential(8, cutoff, pulses), Balanced(divergence, energy, granularity)
    return Recipe("balanced", neuron, rule, policy, product_terms=2, steps=steps, correction=correction)
