"""The account the papers use: accumulates of spiking layers against multiply-accumulates of the same layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._plan import Plan
from ..measure import Tally
from ..table import Table, decimals
from .prices import PriceTable, load_prices


@dataclass(frozen=True)
class PaperAccount:
    """Energy per sample after each step, as the literature counts it.

        E(T) = 0.9 pJ x sum_{t<=T} synaptic operations;   E_source = 4.6 pJ x dense operations;   ratio = E / E_source

    Linear layers, convolutions and products behind a neuron are counted, on both sides; an analog one among them (a
    head without neuron) by its non-zero inputs, at the accumulate price. Not counted: layers before any neuron (listed
    in `left_out`), compensated nonlinearities at every step, neurons, memory. It compares with published figures and
    is not the energy of a chip.
    Source: SOP counting of the released code of arXiv 2502.21193; prices in `prices`.
    """

    prices: PriceTable
    samples: int
    operations: np.ndarray  # [T] accumulates per sample in each step
    dense: int  # multiply-accumulates per sample of the source layers
    left_out: tuple[str, ...]

    @property
    def energy_pj(self) -> np.ndarray:
        """Cumulative energy per sample after each step, [T], in pJ."""
        return self.operations.cumsum() * self.prices.pj["accumulate"]

    @property
    def source_pj(self) -> float:
        return self.dense * self.prices.pj["multiply_accumulate"]

    @property
    def ratio(self) -> np.ndarray:
        return self.energy_pj / self.source_pj if self.dense else np.full(len(self.operations), np.nan)

    @property
    def spikes_per_synapse(self) -> np.ndarray:
        """Accumulates per dense multiply-accumulate, cumulative, [T]."""
        return self.operations.cumsum() / max(self.dense, 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "account": "paper",
            "prices": {"name": self.prices.name, "pj": dict(self.prices.pj), "sources": dict(self.prices.sources)},
            "operations_per_sample": self.operations.tolist(),
            "dense_operations_per_sample": self.dense,
            "energy_pj": self.energy_pj.tolist(),
            "source_pj": self.source_pj,
            "ratio": self.ratio.tolist(),
            "spikes_per_synapse": self.spikes_per_synapse.tolist(),
            "left_out": list(self.left_out),
        }

    def table(self) -> Table:
        rows = tuple(
            (
                str(t + 1),
                decimals(self.operations[t] / 1e6),
                decimals(self.energy_pj[t] / 1e6),
                f"{self.spikes_per_synapse[t]:.3f}",
                f"{self.ratio[t]:.3f}",
            )
            for t in range(len(self.operations))
        )
        left_out = f"left out as in the papers: {', '.join(self.left_out)}; " if self.left_out else ""
        notes = (
            f"source {decimals(self.dense / 1e6)} M multiply-accumulates, {decimals(self.source_pj / 1e6)} uJ; "
            f"prices: {self.prices.name}",
            f"{left_out}compensated operators, neurons and memory are not counted: compare with papers, not with chips",
        )
        columns = ("step", "M accumulates", "uJ so far", "spikes/synapse", "ratio to source")
        return Table("Energy per sample, the paper's account", columns, rows, notes)

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table().__rich__()


def paper_account(tally: Tally, plan: Plan, prices: PriceTable | None = None) -> PaperAccount:
    """Price the operations of a tally. `plan` names the layers the account leaves out."""
    operations = sum(tally.operations.values(), np.zeros(tally.steps, np.int64)) / max(tally.samples, 1)
    left_out = tuple(layer.name for layer in plan.layers if layer.name not in tally.operations)
    return PaperAccount(prices or load_prices(), tally.samples, operations, sum(tally.dense.values()), left_out)
