"""Fast ANN-SNN conversion (FAS), as far as it is training-free."""

from __future__ import annotations

from ..neurons import MultiThreshold
from ..observers import MinimumError
from ..policy import Policy
from .recipe import Recipe


def fas(
    *,
    granularity: str = "channel",
    shifts: bool = False,
    correction: str = "none",
    steps: int = 8,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """FAS: integrate-and-fire neurons behind activation functions, which is what feeds the second linear layer of a
    feed-forward block; all else stays analog. Coarse, then fine calibration: one threshold per site, then one per
    channel (`granularity` "neuron": per position and channel, as published; "tensor": none) and, with `shifts`, a
    constant that puts its mean right.

    Source: Chen et al., arXiv 2502.04405, and its code. Differences: no fine-tuning to a clipped ReLU
    (examples/finetune_fas.py has it), so where an activation has both signs, so has the neuron; the neuron reads the
    activation, not what the activation reads, and behind a gate the product; calibration searches powers of two for the
    least error of each site on its own, with constant input, in place of gradients through the network in spikes, and
    by channel, because that holds on other samples; the mean is shifted behind the neuron, not by an initial potential
    in it, which stays theta / 2. See docs/fas.md.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown, sites="activations")
    rule = MinimumError(granularity, shifts)
    return Recipe("fas", MultiThreshold(1, 0.5), rule, policy, steps=steps, correction=correction)
