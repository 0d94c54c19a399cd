"""The multi-threshold neuron under differential coding: a spike carries a correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..types import Threshold
from .multi_threshold import MultiThreshold
from .trajectory import state_dtype


@dataclass(frozen=True)
class Differential:
    """Signed neuron with n levels per sign, theta 2^-k, that corrects a running estimate R.

        R(t) = R(t-1) + Q(M_in(t) - R(t-1));   M_out(t) = R(t)

    Q is the nearest level, as in `MultiThreshold`. On a constant input in range the error shrinks at least threefold a
    step, until it is below cutoff theta 2^-(n-1), instead of as 1/t; a neuron that is right falls silent. It needs the
    same large levels in both directions, even where the activation has one sign, or it cannot take back an overshoot.
    Arguments: levels -- n, per sign. cutoff -- the smallest correction that fires, in units of the smallest level.
    Source: differential coding, ANN-to-SNN DCGS (ICML 2025, arXiv 2503.00301), in running-estimate form: there a spike
    of step t counts 1/t, so the amplitude sent is t times the correction here.
    """

    name: ClassVar[str] = "differential"
    code: ClassVar[str] = "sum"
    levels: int = 8
    cutoff: float = 0.5

    def __post_init__(self) -> None:
        MultiThreshold(self.levels, self.cutoff)  # the same limits

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        drive = mean_in.to(state_dtype(mean_in.dtype))
        emitted = self.quantise(drive if state is None else drive - state, threshold)
        state = emitted.clone() if state is None else state + emitted
        return state, state, emitted

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        return MultiThreshold(self.levels, self.cutoff).quantise(potential, threshold)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        return MultiThreshold(self.levels, self.cutoff).amplitudes(threshold)
