"""What approximated operators do in one evaluation: at most so many operations, one rule per operator.

A function of N bases over a window of T decays compares each membrane with T thresholds and sends N T spikes at most;
a spike adds its worth to the output (an accumulate) and resets its membrane. N is counted, which the energy formula of
arXiv 2508.07710 leaves out. Two banks of N/2 bases each compare both; only one of them, that of the input's sign, can
spike. Products and squares inside softmax and normalisation are multiplications here, as they are run; the paper makes
them of spikes, at T^2 accumulates each.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch.fx

from ..multi_basis import Approximation
from ..ops.rule import argument
from .costs import COSTS
from .kinds import Counts, Kind, added
from .shapes import elements, sizes

Rule = Callable[[torch.fx.Node, Approximation], Counts]


def function(calls: float, approximation: Approximation, *, banks: int = 1) -> Counts:
    """So many evaluations of a fitted function; an addition and a multiplication bring each input into range."""
    thresholds = approximation.bases * approximation.window
    spikes = thresholds // banks
    return {
        Kind.ADD: calls,
        Kind.MULTIPLY: calls,
        Kind.COMPARE: thresholds * calls,
        Kind.ACCUMULATE: spikes * calls,
        Kind.INTEGRATE: spikes * calls,
        Kind.STATE_WORDS: 2 * approximation.bases * calls,
    }


def _shifted(calls: float, approximation: Approximation) -> Counts:
    """The function of what a power of two leaves: shifts before and after."""
    return added((function(calls, approximation), {Kind.SHIFT: 2 * calls}))


def elementwise(node: torch.fx.Node, approximation: Approximation) -> Counts:
    return function(elements(node), approximation, banks=2)


def inverse_root(node: torch.fx.Node, approximation: Approximation) -> Counts:
    return _shifted(elements(node), approximation)


def softmax(node: torch.fx.Node, approximation: Approximation) -> Counts:
    """Maximum, subtraction, scaling, 2^f and its shift, sum; a reciprocal a row and its product."""
    count = elements(node)
    rows = count / max(sizes(node)[int(argument(node, 1, "dim"))], 1) if sizes(node) else 1  # type: ignore[call-overload]
    own = {Kind.COMPARE: count, Kind.ADD: 2 * count, Kind.MULTIPLY: 2 * count}
    return added((own, _shifted(count, approximation), _shifted(rows, approximation)))


def normalised(node: torch.fx.Node, approximation: Approximation) -> Counts:
    """What the exact operator does, with the fitted function for the root and the division of each group."""
    own: dict[Kind, Any] = dict(COSTS[node.target](node))
    for kind in (Kind.SQUARE_ROOT, Kind.DIVISION):
        own.pop(kind)
    groups = elements(node) / prod(node.args[1])  # type: ignore[arg-type]
    return added((own, _shifted(groups, approximation)))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("gelu.default", "silu.default", "tanh.default"), elementwise),
    "rsqrt.default": inverse_root,
    **dict.fromkeys(("softmax.int", "_softmax.default", "_safe_softmax.default"), softmax),
    **dict.fromkeys(("layer_norm.default", "rms_norm.default"), normalised),
}
