"""Histograms, Grain, Sensitivity -> thresholds, by running the neuron on what its site saw: alone or all together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..energy import load_prices
from ..neurons import Neuron, Parallel, trajectory
from ..observers import Balanced, Histogram
from ..observers.rounding import round_up
from ..recipes import Recipe
from ..types import Threshold
from .grain import MAX_LEVELS, Grain
from .sensitivity import Sensitivity

FINENESS = 4  # candidates per octave
OCTAVES = 16  # below the largest activation


@dataclass(frozen=True)
class Candidates:
    """Choices for one site, from coarse to fine: error[j] and spikes[j] per neuron at threshold[j] and levels[j]."""

    thresholds: tuple[Threshold, ...]
    levels: tuple[int, ...]
    error: torch.Tensor
    spikes: torch.Tensor


def candidates(neuron: Neuron, peak: float, grain: Grain, recipe: Recipe) -> Candidates:
    """What a site's neurons would do to its activations, held constant for `recipe.steps` steps, for a range of
    smallest levels.

    The smallest level of the finest neurons is peak 2^(-j/4), that of a neuron `octaves` above them so many times
    larger, and there are as many levels as reach the peak. Errors count by the neurons' share of the information.
    """
    values, weights = grain.seen.magnitudes()
    weigh = grain.share / weights.sum(1).clamp(min=1e-300)
    means = values.expand(recipe.steps, -1)
    thresholds, levels, errors, spikes = [], [], [], []
    coarsest = (len(weights) + 1) * FINENESS
    for j in range(-coarsest, OCTAVES * FINENESS + 1):
        smallest = round_up(peak * 2.0 ** (-j / FINENESS), recipe.threshold_bits)
        count = min(max(1 + math.ceil(math.log2(peak / smallest)), 1), MAX_LEVELS)
        threshold = Threshold(smallest * 2.0 ** (count - 1), smallest * 2.0 ** (count - 1))
        out, fired, _ = trajectory(replace(neuron, levels=count), means, threshold, masks=True)  # type: ignore[type-var]
        thresholds.append(threshold)
        levels.append(count)
        errors.append((out[-1] - values).square())
        spikes.append(fired.sum(0))  # type: ignore[union-attr]
    first = coarsest - 2 * FINENESS
    error, fired = (_over_groups(torch.stack(each), weights, first) for each in (errors, spikes))
    return Candidates(tuple(thresholds[first:]), tuple(levels[first:]), error @ weigh, fired.sum(1))


def _over_groups(by_threshold: torch.Tensor, weights: torch.Tensor, first: int) -> torch.Tensor:
    """[candidates, groups]: group g meets what every neuron would at a smallest level g octaves up the list."""
    count = len(by_threshold) - first
    columns = [
        by_threshold[first - FINENESS * g : first - FINENESS * g + count].double() @ weights[g]
        for g in range(len(weights))
    ]
    return torch.stack(columns, 1)


def least_error(neuron: Neuron, histogram: Histogram, recipe: Recipe) -> Threshold:
    """The threshold of `MinimumError`."""
    values, weights = histogram.magnitudes()
    means = values.expand(recipe.steps, -1)
    best, least = Threshold(0.0, 0.0), math.inf
    for j in range(-2 * FINENESS, 8 * OCTAVES):
        theta = round_up(histogram.peak * 2.0 ** (-j / 8), recipe.threshold_bits)
        out, _, _ = trajectory(neuron, means, Threshold(theta, theta))
        error = float(((out[-1] - values).square() * weights).sum())
        if error < least:
            best, least = Threshold(theta, theta), error
    return best


def effective_levels(neuron: Neuron, steps: int) -> int:
    """N of `FixedPoint`: how many levels a neuron with n of them has after T steps, T 2^n as the paper counts them.
    Integrate-and-fire has T, and in its closed form as many as a window has time-steps."""
    if isinstance(neuron, Parallel):
        return neuron.levels * steps
    return steps * 2**neuron.levels if neuron.levels > 1 else steps


def allocate(
    rule: Balanced, choices: Mapping[str, Candidates], sensitivities: Mapping[str, Sensitivity], samples: int
) -> dict[str, int]:
    """By site, the candidate that minimises the Lagrangian of `Balanced` at the multiplier that meets the budget."""
    divergence = {n: c.error * sensitivities[n].information / samples / 2 for n, c in choices.items()}
    operations = {n: c.spikes * sensitivities[n].operations for n, c in choices.items()}
    whole = sum(sensitivities[n].operations for n in choices)
    prices = load_prices().pj  # as the paper's account has them

    def chosen(log_multiplier: float) -> dict[str, int]:
        multiplier = math.exp(log_multiplier)
        return {n: int(torch.argmin(divergence[n] + multiplier * operations[n])) for n in choices}

    def too_coarse(picks: Mapping[str, int]) -> bool:
        if rule.energy is None:
            return sum(float(divergence[n][j]) for n, j in picks.items()) > rule.divergence
        spent = sum(float(operations[n][j]) for n, j in picks.items()) / whole
        return spent * prices["accumulate"] < rule.energy * prices["multiply_accumulate"]

    low, high = math.log(1e-30), math.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if too_coarse(chosen(middle)) else (middle, high)
    return chosen(low)
