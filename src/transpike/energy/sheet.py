"""EnergySheet -> tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..table import Table, decimals

if TYPE_CHECKING:
    from .accounts import EnergySheet

AT_MOST = (
    "at most: every basis of an approximated operator is taken to spike at every decay of the window; the bases are "
    "counted, which the published formula leaves out"
)
ASSUMED = (
    "spiking network: constants before the first neuron are emitted at every step in rate code; neurons compare with "
    "every level; a spike's power of two is a shift; a sum over synapses stays in a register until the step ends",
    "not charged on either side: control, leakage, clock, rearrangements, batching; elementwise and special functions "
    "cost their floating-point price against integers too",
)


def tables(sheet: EnergySheet) -> tuple[Table, ...]:
    return comparison_table(sheet), parts_table(sheet), break_even_table(sheet)


def comparison_table(sheet: EnergySheet) -> Table:
    """One row per opponent and account: the ratio after each step, and both energies after the last."""
    shown = shown_steps(sheet.steps)
    columns = ("opponent", "account", *(f"T={t}" for t in shown), "uJ spiking", "uJ opponent")
    rows = []
    for c in sheet.comparisons:
        ratios = (f"{c.ratio[t - 1]:.3f}" for t in shown)
        bound = {(True, False): "at least ", (False, True): "at most ", (True, True): "about "}
        mine, theirs = bound.get((c.at_least, c.at_most), ""), "at least " if c.at_least else ""
        rows.append((c.opponent, c.account, *ratios, mine + _micro(c.spiking_pj), theirs + _micro(c.source_pj)))
    return Table("Energy per sample: ratio to the opponent", columns, tuple(rows), _notes(sheet))


def _micro(values: np.ndarray) -> str:
    return decimals(values[-1] / 1e6)


def _notes(sheet: EnergySheet) -> tuple[str, ...]:
    widths = [int(width[-1]) for width in sheet.bits.values()]
    low, high = min(widths), max(widths)
    span = f"{low}" if low == high else f"{low} to {high}"
    chip = sheet.prices.assumptions
    notes = (
        f"{sheet.samples:,} samples; prices: {sheet.prices.name}; hops {chip.hops:g}, state {chip.state_bits:g} bits, "
        f"integer weights {chip.weight_bits:g} bits, {chip.synapses_per_weight_read:g} synapse(s) per weight read",
        f"same information: {span} bits after T={sheet.steps}, ceil(log2(distinct sums of T spikes)) by site",
        f"the paper's account sees {100 * sheet.paper_share[-1]:.1f} % of the compute-complete energy (FP32)",
        "shared reads: each weight and operand is read once a step at most, the least any order of events can do",
        *((AT_MOST,) if sheet.ledger.at_most else ()),
        *ASSUMED,
    )
    if not sheet.uncounted:
        return notes
    missing, more = len(sheet.uncounted), len(sheet.uncounted) - 5
    named = "; ".join(sheet.uncounted[:5]) + (f" and {more} more" if more > 0 else "")
    return (*notes, f"at least: {missing} operator(s) of unknown cost are not in the totals: {named}")


def shown_steps(steps: int) -> list[int]:
    """All steps up to 8; else the powers of two and the last."""
    return [t for t in range(1, steps + 1) if steps <= 8 or t == steps or t & (t - 1) == 0]


def parts_table(sheet: EnergySheet) -> Table:
    parts = sheet.parts()
    compute, memory = (sum(pair[i] for pair in parts.values()) or 1.0 for i in (0, 1))
    rows = tuple(
        (name, decimals(c / 1e6), f"{100 * c / compute:.1f}", decimals(m / 1e6), f"{100 * m / memory:.1f}")
        for name, (c, m) in sorted(parts.items(), key=lambda item: -sum(item[1]))
    )
    columns = ("part", "uJ compute", "% of compute", "uJ memory", "% of memory")
    return Table(f"Where the spiking network's FP32 energy goes, T={sheet.steps}", columns, rows)


def break_even_table(sheet: EnergySheet) -> Table:
    rows = tuple((p.name, p.quantity, p.bound, f"{p.value:.3g}", p.verdict, p.source) for p in sheet.break_evens)
    columns = ("break-even point", "in", "at", "here", "we are", "source")
    return Table(f"Break-even points of the literature, T={sheet.steps}", columns, rows)
