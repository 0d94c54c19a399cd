"""What can be fitted: one row per function of one number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

Function = Callable[[torch.Tensor], torch.Tensor]

# Fitted on a range that calibration finds, by one bank for positive inputs and one for negative ones: a membrane that
# only falls cannot follow a function through zero.
RANGED: dict[str, Function] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}

# Fitted on the range that splitting off a power of two leaves.
FIXED: dict[str, tuple[Function, float, float]] = {
    "exp2": (torch.exp2, 0.0, 1.0),
    "reciprocal": (torch.reciprocal, 0.5, 1.0),
    "rsqrt": (torch.rsqrt, 0.5, 2.0),
}

FUNCTIONS: dict[str, Function] = {**RANGED, **{name: row[0] for name, row in FIXED.items()}}
