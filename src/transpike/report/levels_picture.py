"""LevelCounts -> PNG: which levels the spikes of each site have."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from .._levels import LevelCounts
from ..errors import ConfigError
from .drawing import end_of_name, new_figure, plain_style, save_picture
from .layers_picture import FRAME, NAMED_SITES, ROW, WIDTH, WRITTEN_STEPS

WRITTEN_LEVELS = 2 * WRITTEN_STEPS
SEEN = 0.005  # a smaller share is not written into its cell


def levels_picture(levels: LevelCounts, path: Path) -> Path:
    """Heat map of the share of a site's spikes that has each level, all steps together: a row per site in the order of
    the graph; negative levels left, positive levels right, each from the largest to the smallest power of two.

    Raises: MissingExtra without matplotlib; ConfigError when there is no site.
    """
    if not levels.counts:
        raise ConfigError("there is no site to draw; convert with at least one layer that spikes")
    columns, grid = level_grid(levels)
    with plain_style():
        figure = new_figure(WIDTH, ROW * max(min(len(grid), NAMED_SITES), 6) + FRAME)
        axes = figure.add_subplot()
        most = float(np.nan_to_num(grid).max(initial=1.0))
        image = axes.imshow(grid, vmin=0, vmax=most, cmap="YlGnBu", aspect="auto", interpolation="nearest")
        _write(axes, grid, most)
        sites = list(levels.counts)
        rows = range(0, len(sites), ceil(len(sites) / NAMED_SITES))
        axes.set_yticks(rows, [end_of_name(sites[row]) for row in rows], fontsize=7, parse_math=False)
        axes.set_xticks(range(len(columns)), [_name(*column) for column in columns], fontsize=7)
        negative = sum(sign < 0 for sign, _ in columns)
        if 0 < negative < len(columns):
            axes.axvline(negative - 0.5, color="black", linewidth=0.8)
        axes.set_xlabel("level of a spike, in units of the largest level of its sign", fontsize=8)
        figure.colorbar(image, ax=axes, pad=0.01).set_label("% of the site's spikes", fontsize=8)
        figure.suptitle(f"Spikes by level, {levels.samples:,} samples, T = {levels.steps}", fontsize=11)
        return save_picture(figure, path)


def level_grid(levels: LevelCounts) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Columns (sign, powers of two below the largest), and percentages [sites, columns]; nan where a site lacks one."""
    shares = [levels.shares(site) for site in levels.counts]
    every = {column for share in shares for column in share}
    columns = sorted((c for c in every if c[0] < 0), key=lambda c: c[1])
    columns += sorted((c for c in every if c[0] > 0), key=lambda c: -c[1])
    grid = np.array([[100 * share.get(column, np.nan) for column in columns] for share in shares])
    return columns, grid.reshape(len(shares), len(columns))


def _name(sign: int, power: int) -> str:
    text = f"1/{2**power}" if power else "1"
    return text if sign > 0 else f"-{text}"


def _write(axes: Any, grid: np.ndarray, most: float) -> None:
    if grid.shape[0] > NAMED_SITES or grid.shape[1] > WRITTEN_LEVELS:
        return
    for row, column in np.ndindex(grid.shape):
        value = float(grid[row, column])
        if value >= 100 * SEEN:
            colour = "white" if value > 0.55 * most else "black"
            axes.text(column, row, f"{value:.0f}", color=colour, fontsize=6, ha="center", va="center_baseline")
