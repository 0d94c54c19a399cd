"""ECMT as its published implementation runs it."""

from __future__ import annotations

from ..neurons import PublishedMultiThreshold
from ..observers import Percentile
from ..policy import Policy
from ..types import SiteKind, Threshold
from .recipe import Recipe, SiteChoice


def ecmt_code(
    *,
    levels: int = 8,
    percentile: float = 0.99,
    softmax: float | None = 0.0125,
    fc2: tuple[float, float] | None = (0.25, 0.08),
    first_layer: str = "analog",
    head: str = "analog",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """ECMT as its published implementation runs it: the 99 % quantile is the smallest of 8 levels; softmax output
    0.0125 for both signs; input of a ViT's second MLP layer 0.25 and 0.08; no neuron before the head.

    Source: released code of arXiv 2502.21193. Differences: quantiles are taken over all calibration samples together,
    not averaged over batches of 64 (which would depend on the batch size), and never over evaluation data. The fc2
    constants are given by module name; pass fc2=None for models whose published setting calibrates it (EVA).
    """
    kinds = {} if softmax is None else {SiteKind.SOFTMAX: SiteChoice(threshold=Threshold(softmax, softmax))}
    patterns = {} if fc2 is None else {"*fc2:input": SiteChoice(threshold=Threshold(*fc2))}
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    return Recipe("ecmt-code", PublishedMultiThreshold(levels), Percentile(percentile), policy, kinds, patterns, None)
