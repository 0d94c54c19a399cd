"""Codes: what a signal's value is in terms of what was emitted, and so how a neuron tracks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .trajectory import state_dtype

Quantise = Callable[[torch.Tensor], torch.Tensor]
Stepped = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def rate_step(quantise: Quantise, state: torch.Tensor | None, t: Any, mean_in: torch.Tensor) -> Stepped:
    """Rate code, the mean: a tracking quantiser with soft reset and zero initial potential.

        m(t) = t M_in(t) - S(t-1);  s(t) = Q(m(t));  S(t) = S(t-1) + s(t);  M_out(t) = S(t) / t

    The state is S, the sum emitted so far, in units of the activation.
    Invariant: S(t) + (m(t) - s(t)) = t M_in(t): no charge is lost (tests/test_neurons.py).
    Source: DESIGN 2.1; equal to the membrane form v(t) = v(t-1) + x(t) - s(t) of arXiv 2502.21193.
    """
    drive = mean_in.to(state_dtype(mean_in.dtype))
    potential = drive * t if state is None else torch.sub(drive * t, state)
    emitted = quantise(potential)
    state = emitted.clone() if state is None else state + emitted
    if isinstance(t, int) and not t & (t - 1):
        return state, state * (1 / t), emitted  # the same number, and quicker
    return state, state / t, emitted


def sum_step(quantise: Quantise, state: torch.Tensor | None, t: int, mean_in: torch.Tensor) -> Stepped:
    """Sum code: a running estimate, corrected.

        m(t) = M_in(t) - R(t-1);  s(t) = Q(m(t));  R(t) = M_out(t) = R(t-1) + s(t)

    Source: arXiv 2503.00301 in running-estimate form.
    """
    drive = mean_in.to(state_dtype(mean_in.dtype))
    emitted = quantise(drive if state is None else drive - state)
    state = emitted.clone() if state is None else state + emitted
    return state, state, emitted


STEPS = {"rate": rate_step, "sum": sum_step}
