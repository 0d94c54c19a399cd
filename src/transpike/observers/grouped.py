"""Magnitudes by group of neurons: what decides thresholds where neurons of a site differ."""

from __future__ import annotations

import torch

BITS = 5  # of the mantissa: bins of relative width 2^-5
_SHIFT = 23 - BITS
BINS = 1 << (8 + BITS)


class Grouped:
    """Counts of |x| in logarithmic bins for every group of a site's neurons. Memory: 64 KB a group.

    Arguments: groups -- by neuron, as the site's tensor without its batch (size 1 there), its group's number.
    """

    def __init__(self, groups: torch.Tensor) -> None:
        self.groups = groups
        self.counts = torch.zeros(int(groups.max()) + 1, BINS, dtype=torch.int64)

    def update(self, values: torch.Tensor) -> None:
        bins = values.detach().to(torch.float32).view(torch.int32).bitwise_and(0x7FFFFFFF).bitwise_right_shift_(_SHIFT)
        codes = bins.add_(self.groups.to(values.device, torch.int32) * BINS).flatten()
        self.counts += torch.bincount(codes, minlength=self.counts.numel()).view_as(self.counts).cpu()

    def magnitudes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """|x| [bins], and the share of all x by group and bin [groups, bins]; empty bins left out; float64."""
        index = self.counts.sum(0).nonzero().flatten()
        edges = torch.stack([index << _SHIFT, (index + 1) << _SHIFT]).to(torch.int32).view(torch.float32).double()
        values = torch.where(index < 1 << BITS, 0.0, edges.mean(0))
        return values, self.counts[:, index].double() / int(self.counts.sum())
