"""Accuracy and agreement with the source model after every step."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch

IGNORED = -100


class Agreement:
    """Streaming counts over batches: how often the source model is right, how often the spiking model is right and how
    often both say the same, after each of T steps. Scores are on the last axis; a sequence is right when every
    labelled position is."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.samples = 0
        self.labelled = 0
        self.source_right = 0
        self.right = np.zeros(steps, np.int64)
        self.same = np.zeros(steps, np.int64)

    def update(self, source: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Arguments: source [B, ..., C]; outputs [T, B, ..., C]; labels [B, ...] with -100 where nothing is asked."""
        answer, answers = source.argmax(-1), outputs.argmax(-1)
        asked = torch.ones_like(answer, dtype=torch.bool) if labels is None else labels != IGNORED
        self.samples += answer.shape[0]
        self.same += _all_right(answers == answer, asked).sum(1).cpu().numpy()
        if labels is not None:
            has_label = asked.flatten(1).any(1) if asked.dim() > 1 else asked
            self.labelled += int(has_label.sum())
            self.source_right += int((_all_right((answer == labels)[None], asked)[0] & has_label).sum())
            self.right += (_all_right(answers == labels, asked) & has_label).sum(1).cpu().numpy()

    @property
    def source_accuracy(self) -> float | None:
        return self.source_right / self.labelled if self.labelled else None

    @property
    def accuracy(self) -> list[float] | None:
        return (self.right / self.labelled).tolist() if self.labelled else None

    @property
    def agreement(self) -> list[float]:
        return (self.same / max(self.samples, 1)).tolist()


def _all_right(equal: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """[T, B, ...] equalities -> [T, B]: right at every position that is asked."""
    return (equal | ~asked).flatten(2).all(2) if equal.dim() > 2 else equal | ~asked


def interval(share: float, samples: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share, 95 % by default."""
    if samples == 0:
        return 0.0, 1.0
    centre = share + z * z / (2 * samples)
    spread = z * sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
