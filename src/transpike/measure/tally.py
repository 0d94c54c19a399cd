"""Counts that add: spikes per site and step, operations per layer and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..table import Table, cells, shorten


@dataclass
class Tally:
    """What `samples` inputs caused in `steps` steps.

    spikes[site] -- int64 [T], spikes emitted in each step. neurons[site] -- neurons per sample.
    operations[layer] -- int64 [T], synaptic operations (accumulates) in each step.
    dense[layer] -- multiply-accumulates of one forward pass of the source layer, per sample.
    by_sample -- int64 [T, samples], spikes of all sites together; of one run only: it neither adds nor is saved.
    """

    steps: int
    samples: int = 0
    spikes: dict[str, np.ndarray] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)
    operations: dict[str, np.ndarray] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    by_sample: np.ndarray | None = field(default=None, compare=False)

    def add_spikes(self, site: str, step: int, counts: np.ndarray, neurons: int) -> None:
        """`counts` are spikes in steps step, step + 1, ... (0-based)."""
        self.spikes.setdefault(site, np.zeros(self.steps, np.int64))[step : step + len(counts)] += counts
        self.neurons[site] = neurons

    def add_operations(self, layer: str, step: int, counts: np.ndarray, dense: int) -> None:
        self.operations.setdefault(layer, np.zeros(self.steps, np.int64))[step : step + len(counts)] += counts
        self.dense[layer] = dense

    def __iadd__(self, other: Tally) -> Tally:
        if other.steps != self.steps:
            raise ValueError(f"cannot add counts of {other.steps} steps to counts of {self.steps}")
        for site, counts in other.spikes.items():
            self.add_spikes(site, 0, counts, other.neurons[site])
        for layer, counts in other.operations.items():
            self.add_operations(layer, 0, counts, other.dense[layer])
        self.samples += other.samples
        return self

    @staticmethod
    def joined(parts: Sequence[Tally]) -> Tally:
        """Of the parts of one batch, in their order."""
        whole = Tally(parts[0].steps)
        for part in parts:
            whole += part
        counted = [part.by_sample for part in parts if part.by_sample is not None]
        whole.by_sample = np.concatenate(counted, 1) if len(counted) == len(parts) else None
        return whole

    @property
    def total_neurons(self) -> int:
        """Neurons of one copy of the network."""
        return sum(self.neurons.values())

    def spikes_per_neuron(self) -> np.ndarray:
        """Mean spikes per neuron in each step, [T]."""
        total = sum(self.spikes.values(), np.zeros(self.steps, np.int64))
        return total / max(self.total_neurons * self.samples, 1)

    def rates(self) -> dict[str, np.ndarray]:
        """Share of a site's neurons that fire in each step, [T] by site."""
        return {site: counts / max(self.neurons[site] * self.samples, 1) for site, counts in self.spikes.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "steps": self.steps,
            "neurons": self.neurons,
            "spikes": {site: counts.tolist() for site, counts in self.spikes.items()},
            "operations": {layer: counts.tolist() for layer, counts in self.operations.items()},
            "dense_operations": self.dense,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Tally:
        """What `to_json` gave, exactly."""
        spikes, operations = (
            {name: np.array(counts, np.int64) for name, counts in data[key].items()} for key in ("spikes", "operations")
        )
        dense = dict(data["dense_operations"])
        return Tally(data["steps"], data["samples"], spikes, dict(data["neurons"]), operations, dense)

    def table(self) -> Table:
        columns = ("site", "neurons", *(f"t={t}" for t in range(1, self.steps + 1)), "total")
        rows = [
            (shorten(site, 56), f"{self.neurons[site]:,}", *cells(rate), f"{rate.sum():.2f}")
            for site, rate in self.rates().items()
        ]
        mean = self.spikes_per_neuron()
        rows.append(("all sites", f"{self.total_neurons:,}", *cells(mean), f"{mean.sum():.2f}"))
        return Table("Spikes per neuron and step", columns, tuple(rows), (f"{self.samples} samples",))

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table().__rich__()
