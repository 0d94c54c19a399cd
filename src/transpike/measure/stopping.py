"""When a decision is stable: the stopping rule, its threshold, and what it gives on a set of samples.

A sample stops at the first step t < T at which the two largest class probabilities are more than a threshold apart,

    softmax(y(t))_1 - softmax(y(t))_2 > threshold,

y(t) the network's output after t steps, and at T otherwise.
"""

from __future__ import annotations

import numpy as np
import torch


def margins(outputs: torch.Tensor) -> torch.Tensor:
    """[..., C] scores -> [...]: largest class probability less the second largest, in float64."""
    largest = outputs.double().softmax(-1).topk(2, -1).values
    return largest[..., 0] - largest[..., 1]


def stopping_steps(outputs: torch.Tensor, threshold: float) -> torch.Tensor:
    """[T, B, C] outputs after each step -> [B]: the step, from 1 to T, at which each sample stops."""
    stops = margins(outputs) > threshold
    stops[-1] = True
    return stops.int().argmax(0) + 1


def stopping_threshold(outputs: torch.Tensor, max_change: float) -> tuple[float, float]:
    """The smallest threshold from which on at most a share `max_change` of the samples stops with another decision than
    after step T, and the share that does.

    Arguments: outputs -- [T, N, C] of calibration samples.
    """
    answers = outputs.argmax(-1)
    wrong = (answers != answers[-1]).cpu().numpy()[:-1]
    reached = np.maximum.accumulate(margins(outputs).cpu().numpy(), axis=0)[:-1]
    before = np.concatenate([np.zeros_like(reached[:1]), reached[:-1]]) if len(reached) else reached
    # At a threshold in [before, reached) a sample stops at that step; each such span of a wrong decision counts one.
    places, at = np.unique(np.concatenate([[0.0], before[wrong], reached[wrong]]), return_inverse=True)
    counts = np.zeros(len(places), np.int64)
    np.add.at(counts, at[1:], np.repeat([1, -1], wrong.sum()))
    counts = counts.cumsum()
    too_many = np.flatnonzero(counts > max_change * outputs.shape[1])
    chosen = int(too_many[-1]) + 1 if len(too_many) else 0
    return float(places[chosen]), float(counts[chosen] / outputs.shape[1])
