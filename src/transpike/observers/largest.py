"""The largest values by channel or head: exact quantiles near the top."""

from __future__ import annotations

import torch


class Largest:
    """The few largest x and the few smallest, or the few largest |x|, of every group of a site's neurons.

    A high quantile needs no more of what was seen, and is exact. Memory: (1 - fraction) of all activations.
    Arguments: along -- the dimensions of the site's tensor whose positions are groups. high -- how many of the largest
    to keep. low -- how many of the smallest; None keeps the largest |x| only.
    """

    def __init__(self, along: tuple[int, ...], high: int, low: int | None) -> None:
        self.along, self.ranks = along, (high, low)
        self.kept: list[torch.Tensor] = []  # [groups, at most so many], of each sign
        self.shape: list[int] = []

    def update(self, values: torch.Tensor) -> None:
        self.shape = [size if axis in self.along else 1 for axis, size in enumerate(values.shape)]
        front = values.detach().movedim(self.along, tuple(range(len(self.along)))).flatten(0, len(self.along) - 1)
        rows = front.reshape(front.shape[0], -1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        high, low = self.ranks
        sides = [(rows.abs(), high)] if low is None else [(rows, high), (-rows, low)]
        before = self.kept or [side[:, :0] for side, _ in sides]
        self.kept = [
            (joined := torch.cat([old, side], 1)).topk(min(rank, joined.shape[1]), 1).values
            for old, (side, rank) in zip(before, sides, strict=True)
        ]

    def quantiles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """By group, of size 1 along the other dimensions: the quantile of x or |x|, and that of -x or |x|; float64."""
        found = [kept[:, -1].double().cpu().view(self.shape) for kept in self.kept]
        return found[0], found[-1]
