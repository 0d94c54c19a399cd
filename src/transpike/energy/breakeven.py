"""Where the literature, and the prices themselves, put the break-even between spikes and multiply-accumulates."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..measure import Tally
from .paper import PaperAccount
from .prices import PriceTable


@dataclass(frozen=True)
class BreakEven:
    """A bound on `quantity`, and this network's `value` of it after the last step."""

    name: str
    quantity: str
    low: float
    high: float
    source: str
    value: float

    @property
    def verdict(self) -> str:
        return "below" if self.value < self.low else "above" if self.value > self.high else "within"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}

    @property
    def bound(self) -> str:
        return f"{self.low:.3g}" if self.low == self.high else f"{self.low:.3g} - {self.high:.3g}"


def break_even(tally: Tally, paper: PaperAccount, prices: PriceTable) -> tuple[BreakEven, ...]:
    """Per inference: spikes per synapse is accumulates per dense multiply-accumulate, the paper's count."""
    steps = max(tally.steps, 1)
    per_neuron = float(tally.spikes_per_neuron().sum())
    values = {
        "spikes per synapse": float(paper.spikes_per_synapse[-1]),
        "spikes per neuron": per_neuron,
        "spikes per neuron and step": per_neuron / steps,
    }
    floating = prices.pj["multiply_accumulate"] / prices.pj["accumulate"]
    integer = prices.integer_multiply_accumulate(8, prices.assumptions.weight_bits) / prices.pj["int_add"]
    points: list[dict[str, Any]] = [
        _point("compute only, FP32 against FP32", floating, f"multiply-accumulate / accumulate in {prices.name}"),
        _point("compute only, integers against INT8", integer, f"INT8 multiply-accumulate / add in {prices.name}"),
        *tomllib.loads(Path(__file__).with_name("literature.toml").read_text(encoding="utf-8"))["point"],
    ]
    return tuple(BreakEven(**point, value=values[point["quantity"]]) for point in points)


def _point(name: str, bound: float, source: str) -> dict[str, Any]:
    return {"name": name, "quantity": "spikes per synapse", "low": bound, "high": bound, "source": source}
