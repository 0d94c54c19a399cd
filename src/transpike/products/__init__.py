"""How products are computed where not just by PyTorch's operator: with a scale inside, as three bfloat16 products, or
in bfloat16 parts on a processor's matrix units, from the spikes of a step or from running means.

To add a way, add its file and say in `_linear` (for linear layers) or `_execute` when it is taken.
"""

from __future__ import annotations

from .parts import linear_of_means, linear_of_spikes, refusal
from .plain import as_it_is, scaled
from .thirds import PRODUCTS, applied, matmul, three_products

__all__ = [
    "PRODUCTS",
    "applied",
    "as_it_is",
    "linear_of_means",
    "linear_of_spikes",
    "matmul",
    "refusal",
    "scaled",
    "three_products",
]
