"""Thresholds for an estimated divergence -> thresholds for the divergence that the network then has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf, isfinite, log
from typing import TypeVar

import torch
import torch.fx

from .._execute import cut, run_body, run_prefix
from ..neurons import Neuron, advance
from ..types import Threshold

Placed = tuple[Mapping[str, Neuron], Mapping[str, Threshold]]
Found = TypeVar("Found")

RUNS = 5
CLOSE = 0.15  # relative: candidates are a quarter of an octave apart
FIRST = 0.3  # of the divergence asked for; the estimate is of first order and too small


def settle(
    asked: float, attempt: Callable[[float], Found], judge: Callable[[Found], float], *, runs: int = RUNS
) -> Found:
    """What `attempt(budget)` gives for the budget at which `judge` of it is `asked`, within 15 %.

    Arguments: attempt -- what is found for a budget. judge -- its divergence, which grows with the budget, about in
    proportion. Returns: the first close enough; after `runs` of them, the nearest, preferring those not above.
    """
    budget, tried, best, least = FIRST * asked, [], None, inf
    for _ in range(runs):
        found = attempt(budget)
        measured = judge(found)
        off = log(measured / asked) if 0 < measured < inf else (inf if measured else -inf)
        distance = 2 * off if off > 0 else -off
        if best is None or distance < least:
            best, least = found, distance
        if abs(off) < CLOSE or not isfinite(off):
            break
        tried.append((log(budget), off))
        budget *= torch.tensor(-off / _slope(tried)).clamp(-3, 3).exp().item()
    assert best is not None
    return best


def _slope(tried: list[tuple[float, float]]) -> float:
    """d log(divergence) / d log(budget), by the last two; 1 where they do not say."""
    if len(tried) < 2:
        return 1.0
    (before, off_before), (now, off_now) = tried[-2:]
    return min(max((off_now - off_before) / (now - before), 0.5), 2.0) if now != before else 1.0


@torch.no_grad()
def divergence(
    marked: torch.fx.GraphModule, placed: Placed, batches: Iterable[tuple[tuple, int]], *, steps: int
) -> float:
    """Mean KL divergence, in nats, of the prediction after `steps` steps from the source's: p = softmax over the last
    dimension of the (first) output; several predictions of a sample count with their mean."""
    program, (neurons, thresholds) = cut(marked), placed
    total, count = 0.0, 0
    for leaves, samples in batches:
        crossing = run_prefix(program, leaves)
        source = run_body(program, crossing, lambda marker, value: value)
        states: dict[str, torch.Tensor] = {}
        output = source
        for t in range(1, steps + 1):

            def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
                site = str(marker.args[1])
                states[site], out, _ = advance(neurons[site], states.get(site), t, value, thresholds[site])  # noqa: B023
                return out

            output = run_body(program, crossing, fire)
        p, q = source.double().log_softmax(-1), output.double().log_softmax(-1)
        predictions = max(source.numel() // (samples * source.shape[-1]), 1)
        total += float((p.exp() * (p - q)).sum()) / predictions
        count += samples
    return total / max(count, 1)
