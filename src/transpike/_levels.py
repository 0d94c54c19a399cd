"""SpikingModel, batch -> LevelCounts: how often each level of each site fires. A pass of its own, step after step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.fx

from ._arguments import require_count
from ._execute import require_finite, run_body, run_prefix
from .neurons import advance
from .table import Table, shorten

if TYPE_CHECKING:
    from ._model import SpikingModel


@dataclass
class LevelCounts:
    """amplitudes[site] -- all values of a spike, ascending. counts[site] -- int64 [T, levels], spikes of each."""

    steps: int
    samples: int = 0
    amplitudes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def __iadd__(self, other: LevelCounts) -> LevelCounts:
        if other.steps != self.steps or (self.amplitudes and other.amplitudes != self.amplitudes):
            raise ValueError("cannot add levels of another run: steps or amplitudes differ")
        self.amplitudes = dict(other.amplitudes)
        for site, counts in other.counts.items():
            self.counts[site] = self.counts.get(site, 0) + counts
        self.samples += other.samples
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "steps": self.steps,
            "sites": {
                site: {"amplitudes": list(self.amplitudes[site]), "spikes": counts.tolist()}
                for site, counts in self.counts.items()
            },
        }

    def table(self) -> Table:
        """Share of a site's spikes by size, in powers of two below its largest level of the same sign."""
        shares = {site: self._by_size(site) for site in self.counts}
        depth = max((max(share) for share in shares.values() if share), default=0)
        columns = ("site", "spikes", *(f"2^-{k}" if k else "largest" for k in range(depth + 1)))
        rows = tuple(
            (shorten(site, 56), f"{self.counts[site].sum():,}", *(f"{share.get(k, 0):.2f}" for k in range(depth + 1)))
            for site, share in shares.items()
        )
        return Table("Share of spikes by level", columns, rows, (f"{self.samples} samples, T={self.steps}",))

    def shares(self, site: str) -> dict[tuple[int, int], float]:
        """Share of the site's spikes by (sign, k), k powers of two below the largest level of that sign."""
        amplitudes, counts = np.array(self.amplitudes[site]), self.counts[site].sum(0)
        found: dict[tuple[int, int], float] = {}
        for sign in (1, -1):
            chosen = sign * amplitudes > 0
            largest = np.abs(amplitudes[chosen]).max(initial=0)
            for amplitude, count in zip(np.abs(amplitudes[chosen]), counts[chosen], strict=True):
                found[sign, int(round(np.log2(largest / amplitude)))] = float(count / max(counts.sum(), 1))
        return found

    def _by_size(self, site: str) -> dict[int, float]:
        found: dict[int, float] = {}
        for (_, size), share in self.shares(site).items():
            found[size] = found.get(size, 0) + share
        return found

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table().__rich__()


@torch.no_grad()
def count_levels(model: SpikingModel, inputs: Any, *, steps: int) -> LevelCounts:
    """Simulate one batch and count the spikes of every level. The sums over levels are the tally's spikes, up to
    ties of several firings that round otherwise here, one after the other, in float32.

    Raises: ConfigError for steps < 1; DataError for inputs of another shape.
    """
    require_count("steps", steps)
    leaves = model.prepare(inputs)
    found = LevelCounts(steps, model.samples_in(leaves))
    for name, neuron in model.neurons.items():
        found.amplitudes[name] = tuple(sorted(set(neuron.amplitudes(model.thresholds[name]))))
        found.counts[name] = np.zeros((steps, len(found.amplitudes[name])), np.int64)
    crossing, state = run_prefix(model.program, leaves), {}

    def fire(t: int, marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        site = str(marker.args[1])
        require_finite(site, value)
        state[site], out, trains = advance(model.neurons[site], state.get(site), t, value, model.thresholds[site])
        found.counts[site][t - 1] = sum(_histogram(emitted, found.amplitudes[site]) for emitted in trains)
        return out

    for t in range(1, steps + 1):
        run_body(model.program, crossing, partial(fire, t))
    return found


def _histogram(emitted: torch.Tensor, amplitudes: tuple[float, ...]) -> np.ndarray:
    """How many elements have each amplitude: boundaries lie between them and 0, so rounding does not matter."""
    edges = sorted({*amplitudes, 0.0})
    between = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    places = torch.bucketize(emitted.flatten(), emitted.new_tensor(between))
    counts = torch.bincount(places, minlength=len(edges)).cpu().numpy()
    return counts[[edges.index(amplitude) for amplitude in amplitudes]]
