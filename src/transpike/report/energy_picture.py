"""Energy sheet -> PNG: the ratio to the source after each step, and the break-even points of the literature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from textwrap import fill
from typing import Any

from .drawing import BLUE, VERMILION, new_figure, plain_style, save_picture, step_ticks
from .pictures import WIDTH

GREEN = "#009E73"
# account: (colour, marker, line style); "shared reads" is the lower bound of "with memory"
LINES = {
    "paper's": (BLUE, "o", "-"),
    "compute-complete": (VERMILION, "s", "-"),
    "with memory": (GREEN, "^", "-"),
    "with memory, shared reads": (GREEN, "v", "--"),
}
DENSITIES = {"spikes per synapse": (BLUE, "o", "-"), "spikes per neuron": (VERMILION, "s", "-")}  # cumulative
NAME_WIDTH = 34
GAP = 0.15  # of the axis: three lines of text


def energy_picture(sheet: Mapping[str, Any], path: Path) -> Path:
    """Above, energy after each step over that of one FP32 inference of the source, by account. Below, spikes per
    synapse and per neuron so far, with the bounds that `energy.breakeven` has for these two as lines or bands.

    Arguments: sheet -- `EnergySheet.to_json()`, or "energy_sheet" of a report.json.
    Raises: MissingExtra without matplotlib.
    """
    with plain_style():
        return save_picture(energy_figure(sheet), path)


def energy_figure(sheet: Mapping[str, Any]) -> Any:
    """The figure of `energy_picture`."""
    figure = new_figure(WIDTH, 7.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for account in LINES:
        ratio = next(c["ratio"] for c in sheet["comparisons"] if (c["opponent"], c["account"]) == ("FP32", account))
        _line(upper, ratio, account, *LINES[account])
    upper.axhline(1, color="black", linewidth=1.3, linestyle=":", label="_break-even")
    upper.set_ylabel("energy / energy of the source (FP32)")
    upper.set_title(f"Energy, {sheet['samples']:,} samples, prices {sheet['prices']['name']}", fontsize=11, loc="left")
    for quantity, style in DENSITIES.items():
        _line(lower, sheet[quantity.replace(" ", "_")], quantity, *style)
    named = [point for point in sheet["break_even"] if point["quantity"] in DENSITIES]
    bounds = [_bound(lower, point, sheet["prices"]["name"]) for point in named]
    lower.set_ylabel("spikes of one inference so far")
    lower.set_title("Break-even points of the literature: below, spikes win", fontsize=11, loc="left")
    lower.set_xlabel("step t")
    lower.set_xticks(step_ticks(sheet["steps"]))
    _finish(upper, [(1.0, "break-even: as much as the source", "black")])
    _finish(lower, bounds)
    return figure


def _line(axes: Any, values: Sequence[float | None], label: str, colour: str, marker: str, style: str) -> None:
    known = [(t, value) for t, value in enumerate(values, 1) if value]  # 0 has no place on a logarithmic axis
    size = 5 if len(values) <= 32 else 0
    steps, heights = [t for t, _ in known], [value for _, value in known]
    axes.plot(steps, heights, color=colour, marker=marker, linestyle=style, markersize=size, linewidth=1.8, label=label)


def _bound(axes: Any, point: Mapping[str, Any], prices: str) -> tuple[float, str, str]:
    """A line where the literature has one number, a band where it has two. Returns (height, name, colour)."""
    low, high, colour = point["low"], point["high"], DENSITIES[point["quantity"]][0]
    source = point["source"].partition(",")[0].partition(":")[0]
    source = prices if source.endswith(f" in {prices}") else source
    number = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    if low == high:
        axes.axhline(low, color=colour, linewidth=1.2, linestyle=":", label=f"_{point['name']}")
    else:
        axes.axhspan(low, high, color=colour, alpha=0.13, linewidth=0, label=f"_{point['name']}")
    unit = point["quantity"].removeprefix("spikes ")
    return (low * high) ** 0.5, f"{number} {unit}: {point['name']} ({source})", colour


def _finish(axes: Any, names: Sequence[tuple[float, str, str]]) -> None:
    """Logarithmic axis and legend; the names of lines at the right, as near to them as they fit above each other."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    above = 1.0 + GAP / 2
    for height, name, colour in sorted(names, reverse=True):
        above = min(log10(height / low) / log10(high / low), above - GAP)
        axes.text(
            1.02, above, fill(name, NAME_WIDTH), color=colour, fontsize=7, va="center", ha="left",
            transform=axes.transAxes, parse_math=False,
        )  # fmt: skip
