"""LayerView -> PNG: signal-to-noise by site and step, with bars for saturated and silent neurons."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..measure.fidelity import LIMIT_DB, LayerView, SiteReport
from .drawing import BLUE, VERMILION, end_of_name, new_figure, plain_style, save_picture, step_ticks

WIDTH, ROW, FRAME = 10.0, 0.165, 2.2  # inches
NAMED_SITES = 120  # up to here every row is tall enough for its name
WRITTEN_STEPS = 12  # up to here a cell is wide enough for its number
MARKED = 5
COLOURS = "YlOrRd_r"  # dark red: little signal above the noise; lightness alone says the same


def layers_picture(view: LayerView, path: Path) -> Path:
    """Heat map of SQNR, a row per site in the order of the graph and a column per step; beside it a column of what
    each site alone adds at step T, and bars of neurons at their largest level and of neurons that never fired. The
    names of the five worst sites are red.

    Raises: MissingExtra without matplotlib; ConfigError when the view has no site.
    """
    if not view.sites:
        raise ConfigError("there is no site to draw; convert with at least one layer that spikes")
    rows = ROW * max(min(len(view.sites), NAMED_SITES), 6)
    with plain_style():
        figure = new_figure(WIDTH, rows + FRAME)
        grid = figure.add_gridspec(2, 4, width_ratios=(5, 0.75, 1.5, 1.5), height_ratios=(rows, 0.13))
        heat = figure.add_subplot(grid[0, 0])
        own, saturated, dead = (figure.add_subplot(grid[0, i], sharey=heat) for i in (1, 2, 3))
        scale = _scale(view)
        image = _heat(heat, np.array([site.sqnr_db for site in view.sites]), scale)
        _heat(own, np.array([site.local_sqnr_db[-1:] for site in view.sites]), scale)
        _saturation_bars(saturated, figure.add_subplot(grid[1, 2]), view.sites)
        silent = [100 * (site.dead or 0.0) for site in view.sites]
        _bars(dead, "never fired", [(silent, "0.35", "")])
        _name_axes(heat, own, view)
        _bar(figure, figure.add_subplot(grid[1, 0]), image)
        figure.suptitle(
            f"Signal to quantisation noise by site and step, {view.samples:,} samples; red: those that add most alone",
            fontsize=11,
        )
        return save_picture(figure, path)


def _scale(view: LayerView) -> tuple[float, float]:
    """Lowest and highest value the colours tell apart; sites without any error or signal do not stretch it."""
    values = [value for site in view.sites for value in (*site.sqnr_db, site.local_sqnr_db[-1])]
    ordinary = [value for value in values if abs(value) < LIMIT_DB] or [0.0]
    low, high = np.floor(max(min(ordinary), -20.0)), np.ceil(min(max(ordinary), 80.0))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1)


def _heat(axes: Any, values: np.ndarray, scale: tuple[float, float]) -> Any:
    count, steps = values.shape
    extent = (0.5, steps + 0.5, count - 0.5, -0.5)
    low, high = scale
    image = axes.imshow(
        values, extent=extent, vmin=low, vmax=high, cmap=COLOURS, aspect="auto", interpolation="nearest"
    )
    if steps <= WRITTEN_STEPS and count <= NAMED_SITES:
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            colour = "white" if value < low + 0.36 * (high - low) else "black"
            text = "exact" if value >= LIMIT_DB else f"{round(value) + 0}"
            axes.text(column + 1, row, text, color=colour, fontsize=6.5, ha="center", va="center_baseline")
    return image


def _saturation_bars(axes: Any, below: Any, sites: tuple[SiteReport, ...]) -> None:
    means = [100 * float(np.mean(site.saturation)) for site in sites]
    pinned = [100 * site.pinned for site in sites]
    _bars(axes, "at largest level", [(means, "#9CC7E4", "mean of steps"), (pinned, BLUE, "at every step")])
    below.axis("off")
    below.legend(*axes.get_legend_handles_labels(), loc="center", frameon=False, fontsize=7, handlelength=1.0)


def _bars(axes: Any, title: str, series: list[tuple[list[float], str, str]]) -> None:
    rows = np.arange(len(series[0][0]))
    for values, colour, label in series:
        axes.barh(rows, values, height=0.72, color=colour, label=label)
    largest = max(max(values) for values, _, _ in series)
    axes.set_xlim(0, min(max(1.08 * largest, 5.0), 105.0))
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("% of neurons", fontsize=8)
    axes.grid(axis="x", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.tick_params(axis="x", labelsize=7)


def _name_axes(heat: Any, own: Any, view: LayerView) -> None:
    rows = named_rows(view)
    names = [end_of_name(view.sites[row].name) for row in rows]
    heat.set_yticks(rows, names, fontsize=7, parse_math=False)
    if len(rows) < len(view.sites):
        heat.set_ylabel(f"site ({len(view.sites)} in all, {len(rows)} named)")
    worst = {site.name for site in view.worst(MARKED)}
    for row, label in zip(rows, heat.get_yticklabels(), strict=True):
        if view.sites[row].name in worst:
            label.set(color=VERMILION, weight="bold")
    heat.set_xticks(step_ticks(view.steps))
    heat.set_title("against the source activation", fontsize=8)
    heat.set_xlabel("step t", fontsize=8)
    own.set_title("alone", fontsize=8)
    own.set_xticks([1], [f"t = {view.steps}"])
    own.tick_params(axis="y", left=False, labelleft=False)
    for axes in (heat, own):
        axes.tick_params(axis="x", labelsize=8)


def named_rows(view: LayerView) -> list[int]:
    """Rows with a name: all of them, or the worst and, between them, as many others as leave room for the text."""
    stride = ceil(len(view.sites) / NAMED_SITES)
    worst = {site.name for site in view.worst(MARKED)}
    marked = [row for row, site in enumerate(view.sites) if site.name in worst]
    spaced = range(0, len(view.sites), stride)
    return sorted({*marked, *(row for row in spaced if all(abs(row - other) >= stride for other in marked))})


def _bar(figure: Any, axes: Any, image: Any) -> None:
    bar = figure.colorbar(image, cax=axes, orientation="horizontal")
    bar.set_label("SQNR of the running mean M_out(t), dB", fontsize=8)
    bar.ax.tick_params(labelsize=7)
