"""Ledger x prices -> energy: in 32-bit floating point, or in integers of a width per site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .kinds import COMPUTE, Counts, Kind
from .ledger import Entry, Ledger
from .prices import PriceTable

Widths = Callable[[str | None], Any]  # site (None: no neuron there) -> bits of its activations, or an array of them
FLOAT_BITS = 32.0
INTEGER_ROWS = {
    Kind.ACCUMULATE: "int_add",
    Kind.SHIFT: "int_shift",
    Kind.INTEGRATE: "int_add",
    Kind.COMPARE: "int_compare",
}


def unit_prices(prices: PriceTable, *, integer: bool) -> dict[Kind, float]:
    """Picojoule per operation. With integers, elementwise and special functions keep their floating-point price on
    both sides (softmax and normalisation are computed so in INT8 networks too)."""
    found = {kind: prices.pj["add" if kind is Kind.INTEGRATE else str(kind)] for kind in COMPUTE}
    if integer:
        found |= {kind: prices.pj[row] for kind, row in INTEGER_ROWS.items()}
        weight = prices.assumptions.weight_bits
        found[Kind.MULTIPLY_ACCUMULATE] = prices.integer_multiply_accumulate(8, weight)
    return found


def compute_pj(counts: Mapping[Kind, Any], unit: Mapping[Kind, float]) -> Any:
    return sum((count * unit[kind] for kind, count in counts.items() if kind in unit), 0.0)


def memory_pj(counts: Mapping[Kind, Any], prices: PriceTable, *, integer: bool) -> Any:
    """Words read and written, and events sent. Integer activations have 8 bits on both sides."""
    chip = prices.assumptions
    weight = chip.weight_bits if integer else FLOAT_BITS
    per = {
        Kind.WEIGHT_WORDS: weight * prices.pj["weight_read"],
        Kind.STATE_WORDS: chip.state_bits * prices.pj["state_access"],
        Kind.ACTIVATION_WORDS: word_pj(prices, 8.0 if integer else FLOAT_BITS),
        Kind.EVENT_BITS: chip.hops * prices.pj["event_route"],
    }
    return sum((count * per[kind] for kind, count in counts.items() if kind in per), 0.0)


def word_pj(prices: PriceTable, width: Any) -> Any:
    """One activation of that width, stored or fetched, and its way over the chip."""
    return width * (prices.pj["activation_access"] + prices.assumptions.hops * prices.pj["dense_route"])


def spiking_pj(ledger: Ledger, prices: PriceTable, *, integer: bool) -> dict[str, np.ndarray]:
    """Per step [T]: `compute`, `memory`, and `saved`, what `memory` loses if nothing is read twice in a step."""
    unit, total = unit_prices(prices, integer=integer), ledger.spiking()
    zero = np.zeros(ledger.steps)
    saved = sum((memory_pj(e.saved, prices, integer=integer) for e in ledger.entries if e.saved), zero)
    return {
        "compute": zero + compute_pj(total, unit),
        "memory": zero + memory_pj(total, prices, integer=integer),
        "saved": zero + saved,
    }


def source_pj(ledger: Ledger, prices: PriceTable, widths: Widths | None) -> dict[str, Any]:
    """One inference of the source: `compute` and `memory`. `widths` None is 32-bit floating point; widths that depend
    on T give arrays [T]."""
    if widths is None:
        unit, total = unit_prices(prices, integer=False), _all_words(ledger)
        return {
            "compute": compute_pj(total, unit),
            "memory": memory_pj(total, prices, integer=False),
        }
    unit = unit_prices(prices, integer=True)
    compute, memory = 0.0, 0.0
    for entry in ledger.entries:
        rest = {kind: count for kind, count in entry.once.items() if kind is not Kind.MULTIPLY_ACCUMULATE}
        dense = entry.once.get(Kind.MULTIPLY_ACCUMULATE, 0)
        compute = compute + compute_pj(rest, unit) + dense * layer_price(entry, prices, widths)
        memory = memory + memory_pj(entry.once, prices, integer=True)
        memory = memory + sum(words * word_pj(prices, widths(site)) for site, words in entry.reads)
    return {"compute": compute, "memory": memory}


def _all_words(ledger: Ledger) -> Counts:
    reads = sum(words for entry in ledger.entries for _, words in entry.reads)
    total = ledger.source()
    return {**total, Kind.ACTIVATION_WORDS: total.get(Kind.ACTIVATION_WORDS, 0) + reads}


def layer_price(entry: Entry, prices: PriceTable, widths: Widths) -> Any:
    """An integer multiply-accumulate of a layer: activation x weight, or activation x activation for a product."""
    product = len(entry.operands) == 2 and all(entry.operands)
    one = next((site for site in entry.operands if site), None)
    other = widths(entry.operands[1]) if product else prices.assumptions.weight_bits
    return prices.integer_multiply_accumulate(widths(one), other)
