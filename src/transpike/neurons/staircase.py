"""What a cascade says within one step is a staircase of what it is given: tabulated once, looked up ever after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

# Entries, of two numbers each: 17 levels and seven firings have 7.3 million. Inputs meet few of them, so that a network
# whose sites have 5 levels takes as long as one whose sites have 17.
MOST = 1 << 23
AT_ONCE = 1 << 18  # entries computed together, so that a table takes little more memory than it has
# Bytes of all tables that are kept: all levels up to 17, of either sign and of both, take up to 350 MB in float32.
KEPT = 1 << 29
# Of the smallest level: where cutoffs may lie. Ties between levels lie at halves.
FINEST = 3


class Staircase(NamedTuple):
    """Firings that follow each other, as a function of what there is to say, in units of theta.

    A firing changes its level at 3/2 2^j smallest levels and at the cutoff, and levels are whole multiples of the
    smallest; so all firings together change at multiples of g = 2^-q smallest levels only, where cutoff 2^q is whole,
    and beyond `pulses` theta not at all. Entry i is for i/2 g - pulses theta: grid points, whose ties go their own
    ways, at even i, and what lies between two of them at odd i.
    said -- the sum emitted. spikes -- how many. grid -- 1/g, and how many steps of the grid there are on either side.
    """

    said: torch.Tensor
    spikes: torch.Tensor
    grid: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)

    def of(self, value: torch.Tensor, *, count: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What is said of values, and how many spikes it takes; said is NaN of what is not finite."""
        finer, reach = self.grid.unbind()
        place = (value * finer).clamp_(-reach, reach)
        index = (place.floor() + place.ceil_()).add_(2 * reach).to(torch.int32)
        index = index.clamp_(0, self.said.shape[0] - 1).reshape(-1).to(torch.int64)  # where NaN would be
        said = self.said.gather(0, index).view(value.shape).add_(value, alpha=0.0)
        return said, self.spikes.gather(0, index).view(value.shape) if count else None


def staircase(
    fire: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    levels: int,
    cutoff: float,
    pulses: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Staircase | None:
    """The staircase of `fire`, which gives the sum emitted and the number of spikes, one firing after the other; None
    where the table would be too large."""
    finer = next((q for q in range(1, FINEST + 1) if (cutoff * 2**q).is_integer()), None)
    if finer is None or 4 * (reach := pulses * 2 ** (levels - 1 + finer)) + 1 > MOST:
        return None
    size = 2.0 ** (levels - 1 + finer)
    said, spikes = (torch.empty(4 * reach + 1, dtype=dtype) for _ in range(2))
    for start in range(0, said.shape[0], AT_ONCE):
        places = torch.arange(start, min(start + AT_ONCE, said.shape[0]), dtype=torch.float64) - 2 * reach
        part = slice(start, start + AT_ONCE)
        said[part], spikes[part] = fire(places / (2 * size))
    return Staircase(*(each.to(device) for each in (said, spikes, torch.tensor([size, reach], dtype=dtype))))


class Shelf:
    """Staircases by what they are of. Where they take more than `most` bytes, those go that were used longest ago."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: dict[Hashable, Staircase | None] = {}
        self.lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Staircase | None]) -> Staircase | None:
        with self.lock:
            found = self.held.pop(key) if key in self.held else make()
            self.held[key] = found  # last
            while self.nbytes > self.most and len(self.held) > 1:
                del self.held[next(iter(self.held))]
            return found

    @property
    def nbytes(self) -> int:
        return sum(stairs.nbytes for stairs in self.held.values() if stairs is not None)
