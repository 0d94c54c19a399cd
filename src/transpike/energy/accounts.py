"""SpikingModel, tally, prices -> EnergySheet: three accounts against three opponents, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measure import Tally
from ..neurons import by_ladder
from .breakeven import BreakEven, break_even
from .information import bits
from .kinds import Counts, added
from .ledger import Entry, Ledger, ledger
from .paper import PaperAccount, paper_account
from .prices import PriceTable, load_prices
from .pricing import Widths, compute_pj, layer_price, memory_pj, source_pj, spiking_pj, unit_prices

if TYPE_CHECKING:
    from .._model import SpikingModel

OPPONENTS = ("FP32", "INT8", "same information")
ACCOUNTS = ("paper's", "compute-complete", "with memory", "with memory, shared reads")


@dataclass(frozen=True)
class Comparison:
    """Energy per sample after each step, [T], of the spiking network and of one inference of the opponent, in pJ."""

    opponent: str
    account: str
    spiking_pj: np.ndarray
    source_pj: np.ndarray
    at_least: bool
    at_most: bool = False  # the spiking side

    @property
    def ratio(self) -> np.ndarray:
        return np.divide(
            self.spiking_pj, self.source_pj, out=np.full(len(self.spiking_pj), np.nan), where=self.source_pj > 0
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "opponent": self.opponent,
            "account": self.account,
            "spiking_pj": self.spiking_pj.tolist(),
            "source_pj": self.source_pj.tolist(),
            "ratio": self.ratio.tolist(),
            "at_least": self.at_least,
            "at_most": self.at_most,
        }


@dataclass(frozen=True)
class EnergySheet:
    """What a tally costs per sample, three ways against three opponents.

    Accounts: "paper's" -- accumulates against multiply-accumulates of the layers behind a neuron, nothing else;
    "compute-complete" -- every operator of the graph, neurons, compensation; "with memory" -- and weights, states,
    activations and events moved, with weights read anew for every spike (or as the price table's assumptions say);
    "with memory, shared reads" -- the same with each weight and operand read once a step at most, the least that any
    schedule of events can do.
    Opponents: the source in FP32; in INT8; and in the activation width that carries the same information, `bits` of
    each site after T steps (`energy.information`). Against integers the spiking network has integer weights and
    accumulators too. What neither side is charged for is said under the table (`energy.sheet`).
    """

    prices: PriceTable
    samples: int
    paper: PaperAccount
    ledger: Ledger
    comparisons: tuple[Comparison, ...]
    break_evens: tuple[BreakEven, ...]
    bits: Mapping[str, np.ndarray]  # by site, [T]
    spikes_per_neuron: np.ndarray  # cumulative, [T]

    @property
    def steps(self) -> int:
        return self.ledger.steps

    @property
    def uncounted(self) -> tuple[str, ...]:
        return tuple(f"{item.op} in {item.module or 'the model'} ({item.node})" for item in self.ledger.uncounted)

    @property
    def paper_share(self) -> np.ndarray:
        """The part of the compute-complete energy that the paper's account sees, after each step."""
        return self.paper.energy_pj / self.comparison("FP32", "compute-complete").spiking_pj

    def comparison(self, opponent: str, account: str) -> Comparison:
        return next(c for c in self.comparisons if (c.opponent, c.account) == (opponent, account))

    def parts(self) -> dict[str, tuple[float, float]]:
        """Where the FP32 energy of T steps goes: (compute, memory) in pJ by treatment of the operators."""
        unit = unit_prices(self.prices, integer=False)
        groups: dict[str, list[Counts]] = {}
        for entry in self.ledger.entries:
            groups.setdefault(entry.treatment, []).append({k: np.sum(v) for k, v in entry.steps.items()})
        priced = {
            name: (float(compute_pj(added(g), unit)), float(memory_pj(added(g), self.prices, integer=False)))
            for name, g in groups.items()
        }
        return {name: pair for name, pair in priced.items() if any(pair)}

    def to_json(self) -> dict[str, Any]:
        spiking, source = self.ledger.spiking(), self.ledger.source()
        return {
            "prices": {
                "name": self.prices.name,
                "pj": dict(self.prices.pj),
                "sources": dict(self.prices.sources),
                "assumptions": vars(self.prices.assumptions),
            },
            "samples": self.samples,
            "steps": self.steps,
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "counts": {
                "spiking": {str(kind): np.asarray(count).tolist() for kind, count in spiking.items()},
                "source": {str(kind): float(count) for kind, count in source.items()},
            },
            "parts": {name: {"compute_pj": c, "memory_pj": m} for name, (c, m) in self.parts().items()},
            "paper_share": self.paper_share.tolist(),
            "spikes_per_neuron": self.spikes_per_neuron.tolist(),
            "spikes_per_synapse": self.paper.spikes_per_synapse.tolist(),
            "break_even": [point.to_json() for point in self.break_evens],
            "bits": {site: width.tolist() for site, width in self.bits.items()},
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        from .sheet import tables

        return "\n\n".join(map(str, tables(self)))

    def __rich__(self) -> Any:
        import rich.console

        from .sheet import tables

        return rich.console.Group(*tables(self))


def energy_sheet(model: SpikingModel, tally: Tally, prices: PriceTable | None = None) -> EnergySheet:
    """Price a tally three ways against three opponents.

    Raises: ConfigError for a tally without counts, or of another network.
    """
    prices = prices or load_prices()
    book = ledger(model, tally, synapses_per_weight_read=prices.assumptions.synapses_per_weight_read)
    paper = paper_account(tally, model.plan, prices)
    said = {
        name: np.array(
            [
                sum(share * bits(own.amplitudes(model.thresholds[name]), t + 1, own.pulses) for own, share in ladders)
                for t in range(tally.steps)
            ],
            float,
        )
        for name, ladders in ((name, by_ladder(neuron)) for name, neuron in model.neurons.items())
    }
    widths: dict[str, Widths | None] = {
        "FP32": None,
        "INT8": lambda site: 8.0,
        "same information": lambda site: 8.0 if site is None else said[site],
    }
    dense = _counted_layers(model, tally, book)
    comparisons = [c for name in OPPONENTS for c in _compared(name, widths[name], book, paper, dense, prices)]
    points, spikes = break_even(tally, paper, prices), tally.spikes_per_neuron().cumsum()
    return EnergySheet(prices, tally.samples, paper, book, tuple(comparisons), points, said, spikes)


def _counted_layers(model: SpikingModel, tally: Tally, book: Ledger) -> list[tuple[Entry, int]]:
    """The layers of the paper's account, with their dense multiply-accumulates."""
    by_node = {entry.node: entry for entry in book.entries}
    return [(by_node[layer.node], tally.dense[layer.name]) for layer in model.plan.layers if layer.name in tally.dense]


def _compared(
    opponent: str,
    widths: Widths | None,
    book: Ledger,
    paper: PaperAccount,
    dense: list[tuple[Entry, int]],
    prices: PriceTable,
) -> list[Comparison]:
    """The accounts against one opponent."""
    integer = widths is not None
    mine, theirs = spiking_pj(book, prices, integer=integer), source_pj(book, prices, widths)
    seen = paper.operations * prices.pj["int_add" if integer else "accumulate"]
    seen_dense = paper.source_pj if widths is None else sum(n * layer_price(e, prices, widths) for e, n in dense)
    both, whole = mine["compute"] + mine["memory"], theirs["compute"] + theirs["memory"]
    pairs = ((seen, seen_dense), (mine["compute"], theirs["compute"]), (both, whole), (both - mine["saved"], whole))
    every, bounds = np.ones(book.steps), (bool(book.uncounted), book.at_most)
    found = []
    for account, (step, source) in zip(ACCOUNTS, pairs, strict=True):
        at_least, at_most = (False, False) if account == "paper's" else bounds
        found.append(Comparison(opponent, account, step.cumsum(), source * every, at_least, at_most))
    return found
