"""Accuracy and agreement with the source model after every step."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
import torch

from ..errors import DataError

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
        """Arguments: source [B, ..., C]; outputs [T, B, ..., C]; labels [B, ...] with -100 where nothing is asked.

        Raises: DataError when the output has no axis of scores, or there is not one label for each prediction.
        """
        if source.dim() < 2:
            raise DataError(
                f"the output has shape {list(source.shape)}, one number a sample; accuracy and agreement need scores "
                "by class, [B, ..., C]"
            )
        if labels is not None and labels.shape != source.shape[:-1]:
            raise DataError(
                f"labels of shape {list(labels.shape)} do not fit scores of shape {list(source.shape)}; give one label "
                f"for each prediction, {list(source.shape[:-1])}, with {IGNORED} where nothing is asked"
            )
        answer, answers = source.argmax(-1), outputs.argmax(-1)
        asked = torch.ones_like(answer, dtype=torch.bool) if labels is None else labels != IGNORED
        self.samples += answer.shape[0]
        self.same += _all_right(answers == answer, asked).sum(1).cpu().numpy()
        if labels is not None:
            has_label = asked.flatten(1).any(1) if asked.dim() > 1 else asked
            self.labelled += int(has_label.sum())
            self.source_right += int((_all_right((answer == labels)[None], asked)[0] & has_label).sum())
            self.right += (_all_right(answers == labels, asked) & has_label).sum(1).cpu().numpy()

    def __iadd__(self, other: Agreement) -> Agreement:
        if other.steps != self.steps:
            raise ValueError(f"cannot add counts of {other.steps} steps to counts of {self.steps}")
        self.samples += other.samples
        self.labelled += other.labelled
        self.source_right += other.source_right
        self.right += other.right
        self.same += other.same
        return self

    def to_json(self) -> dict[str, Any]:
        """The counts themselves, as whole numbers; lists by step."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "labelled": self.labelled,
            "source_right": self.source_right,
            "right": self.right.tolist(),
            "same": self.same.tolist(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Agreement:
        """What `to_json` gave, exactly."""
        found = Agreement(data["steps"])
        found.samples, found.labelled, found.source_right = (
            int(data[key]) for key in ("samples", "labelled", "source_right")
        )
        found.right, found.same = np.array(data["right"], np.int64), np.array(data["same"], np.int64)
        return found

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
