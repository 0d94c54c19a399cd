"""Multi-basis exponential decay."""

from __future__ import annotations

from dataclasses import replace

from ..multi_basis import Approximation
from ..neurons import ExponentialDecay
from ..policy import Policy
from .recipe import Recipe
from .rules import range_rule


def mbe(
    *,
    levels: int = 16,
    bases: int = 8,
    decay: float = 0.5,
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
    """MBE: exponential decay neurons, and nonlinear operators by `bases` decaying bases (0: exact), one window a step.

    Source: arXiv 2508.07710, without its code. Differences: see `ExponentialDecay`, `multi_basis.fit` and docs/mbe.md.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, operators = ExponentialDecay(levels, decay), Approximation(bases, levels) if bases else None
    ranges = range_rule(rule, percentile, True, granularity)
    recipe = Recipe("mbe", neuron, ranges, policy, product_terms=2, steps=1, operators=operators)
    return replace(recipe, correction=correction, sequential=sequential)
