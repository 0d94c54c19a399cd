"""The multi-threshold neuron under differential coding: a spike carries a correction; and its cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import sum_step
from .multi_threshold import MultiThreshold, bounds, is_zero, nearest_level, one_scale
from .staircase import KEPT, Shelf, Staircase, staircase
from .trajectory import advance, spike_dtype, spikes_and, spikes_in, state_dtype

TABLES = Shelf(KEPT)


@dataclass(frozen=True)
class Differential:
    """Signed neuron with n levels per sign, theta 2^-k, that corrects a running estimate R.

        R(t) = R(t-1) + Q(M_in(t) - R(t-1));   M_out(t) = R(t)

    Q is the nearest level, as in `MultiThreshold`. On a constant input in range the error shrinks at least threefold a
    step, until it is below cutoff theta 2^-(n-1), instead of as 1/t; a neuron that is right falls silent (with a cutoff
    of 1/2 or less, one halfway between two multiples of the smallest level goes back and forth). It needs the same
    large levels in both directions, even where the activation has one sign, or it cannot take back an overshoot.
    A residual cascade is the same neuron with several firings a step: each corrects what the ones before left, so one
    step with enough of them rounds to the nearest multiple of the smallest level, written in signed powers of two.
    Arguments: levels -- n, per sign. cutoff -- the smallest correction that fires, in units of the smallest level.
    pulses -- firings per step.
    Source: differential coding, ANN-to-SNN DCGS (ICML 2025, arXiv 2503.00301), in running-estimate form: there a spike
    of step t counts 1/t, so the amplitude sent is t times the correction here. Cascade: harmony multi-threshold neurons
    (AAAI 2026), which run through all levels of each sign within a step; here the nearest level of either sign fires
    first, which takes fewer spikes.
    """

    name: ClassVar[str] = "differential"
    code: ClassVar[str] = "sum"
    spreads_nan: ClassVar[bool] = True
    levels: int = 8
    cutoff: float = 0.5
    pulses: int = 1

    def __post_init__(self) -> None:
        MultiThreshold(self.levels, self.cutoff)  # the same limits
        if isinstance(self.pulses, bool) or not isinstance(self.pulses, int) or not 1 <= self.pulses <= 24:
            raise ConfigError(f"pulses must be a whole number from 1 to 24, not {self.pulses!r}")

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return sum_step(lambda potential: self.quantise(potential, threshold), state, t, mean_in)

    def at_once(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold, *, count: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        drive = mean_in.to(state_dtype(mean_in.dtype))
        parameters = self.parameters(threshold, drive.dtype)
        if self.pulses > 1 and one_scale(*parameters[:2]):
            stairs = self.stairs(threshold, drive.dtype, drive.device)
            state, mean_out, spikes = self.firings(state, drive, self.pulses, *parameters, count=count, stairs=stairs)
            return state, mean_out, None if spikes is None else spikes.to(spike_dtype(self))
        state, mean_out, trains = advance(self, state, t, mean_in, threshold)
        return state, mean_out, spikes_in(trains) if count else None

    @staticmethod
    def firings(
        state: torch.Tensor | None,
        drive: torch.Tensor,
        pulses: int,
        positive: Any,
        negative: Any,
        up: Any,
        down: Any,
        *ladder: Any,
        count: bool,
        stairs: Staircase | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The state and mean after a step, and how many spikes there were; for `one_scale`, two firings or more.

        In units of theta what is left after each firing is exact, and so is the difference of the first and the last of
        them, the sum of all that was emitted. With `stairs`, of `stairs`, that sum is looked up. But the ratio was
        rounded, and the sum of states is. So the last firing acts on the membrane itself: where the others have said
        all but what rounding hid, a second step on the same input finds nothing to say. (On a GPU the compiler may
        round a product and a sum once instead of twice.)
        """
        theta, inverse = (negative, down) if is_zero(positive) else (positive, up)
        reach = bounds(positive, negative)
        start = (drive if state is None else drive - state) * inverse
        if stairs is None:
            said, spikes = one_by_one(start, pulses - 1, ladder, reach, count)
        else:
            said, spikes = stairs.of(start, count=count)
        said = said * theta
        state = said if state is None else state + said
        last = nearest_level((drive - state) * inverse, *ladder, *reach)
        state = state + last * theta
        return state, state, spikes_and(spikes, last) if count else None

    def stairs(self, threshold: Threshold, dtype: torch.dtype, device: torch.device) -> Staircase | None:
        """What the firings of a step but the last say, as a table; None where it would be no help, or too large."""
        positive, negative, _, _, *ladder = self.parameters(threshold, torch.float64)
        if self.pulses <= 2 or not one_scale(positive, negative):
            return None
        reach, pulses = bounds(positive, negative), self.pulses - 1

        def fire(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return one_by_one(values, pulses, ladder, reach, True)  # type: ignore[return-value]

        return TABLES.get(
            (self, *reach, dtype, device),
            lambda: staircase(fire, self.levels, self.cutoff, pulses, dtype, device),
        )

    def is_silent(self, potential: torch.Tensor, threshold: Threshold) -> bool:
        """Whether no membrane reaches what fires, or there is none; not where one is NaN."""
        _, _, up, down, _, least = self.parameters(threshold, potential.dtype)
        if not potential.numel():
            return True
        lowest, highest = torch.aminmax(potential)
        return bool((highest * up < least) & (-lowest * down < least))

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor:
        return MultiThreshold(self.levels, self.cutoff).quantise(potential, threshold)

    def parameters(self, threshold: Threshold, dtype: torch.dtype) -> tuple[float | None, ...]:
        return MultiThreshold(self.levels, self.cutoff).parameters(threshold, dtype)

    level = staticmethod(MultiThreshold.level)

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]:
        return MultiThreshold(self.levels, self.cutoff).amplitudes(threshold)


def one_by_one(
    start: torch.Tensor, pulses: int, ladder: Sequence[Any], reach: tuple[float, float], count: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Firing after firing at what is left of `start`, in units of theta: the sum emitted, and how many spikes."""
    left, spikes = start, None
    for _ in range(pulses):
        level = nearest_level(left, *ladder, *reach)
        left = left - level
        spikes = spikes_and(spikes, level) if count else None
    return start - left, spikes
