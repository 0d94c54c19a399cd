"""Nonlinear functions from decaying bases: the training-free fit of MBE, and the operators made of it.

A function of one number is a sum of N bases, each of which takes its input apart over T decaying thresholds. The fit
needs a function and a range, no data and no labels. Source: arXiv 2508.07710; docs/mbe.md has every difference.
To let a recipe replace one more operator, add its row in SUBSTITUTES.
"""

from .bank import Bank, Fit, spike_counts, table
from .fitting import fit
from .functions import FUNCTIONS
from .operators import RANGED, SUBSTITUTES
from .settings import Approximation

__all__ = [
    "FUNCTIONS",
    "RANGED",
    "SUBSTITUTES",
    "Approximation",
    "Bank",
    "Fit",
    "fit",
    "spike_counts",
    "table",
]
