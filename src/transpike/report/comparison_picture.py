"""A comparison's JSON document -> PNG: how good each recipe is, over steps, spikes and each energy account."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..table import shorten
from .drawing import BLUE, VERMILION, new_figure, plain_style, save_picture

WIDTH, HEIGHT = 11.0, 6.6  # inches
# Okabe and Ito's palette without yellow, which is too pale for lines on white; markers and dashes say the same again.
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "black")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
PANELS = (
    ("time-steps T", lambda point: point["steps"]),
    ("spikes per neuron", lambda point: point["spikes_per_neuron"]),
    ("energy / FP32 source: the paper's account", lambda point: point["energy"]["paper"]),
    ("energy / FP32 source: compute-complete", lambda point: point["energy"]["compute"]),
    ("energy / FP32 source: with memory", lambda point: point["energy"]["memory"]),
)
NAME_WIDTH = 40


def comparison_picture(document: Mapping[str, Any], path: Path) -> Path:
    """Accuracy (agreement, where nothing is labelled) with 95 % intervals in five panels, a line per recipe with a
    point per number of steps; the dashed line is the source's accuracy, the dotted one the source's energy.

    Raises: MissingExtra without matplotlib.
    """
    labelled = document["source"]["accuracy"] is not None
    fitting = [entry for entry in document["recipes"] if entry["points"]]
    with plain_style():
        figure = new_figure(WIDTH, HEIGHT)
        grid = figure.subplots(2, 3, sharey=True).flatten()
        for index, (axes, (name, value)) in enumerate(zip(grid, PANELS, strict=False)):
            for number, entry in enumerate(fitting):
                _line(axes, entry, number, value, "accuracy" if labelled else "agreement")
            _finish(axes, name, document, energy=index >= 2, steps=index == 0)
        for axes in (grid[0], grid[3]):
            axes.set_ylabel("accuracy (%)" if labelled else "agreement with the source (%)")
        _limit(grid[0], fitting, "accuracy" if labelled else "agreement")
        grid[5].axis("off")
        grid[5].legend(*grid[2].get_legend_handles_labels(), loc="center", frameon=False, fontsize=9, handlelength=3.2)
        samples = document["samples"]
        figure.suptitle(f"Recipes on the same {samples:,} samples; bars: 95 % intervals", fontsize=11)
        return save_picture(figure, path)


def _line(axes: Any, entry: Mapping[str, Any], number: int, value: Any, quantity: str) -> None:
    points = [point for point in entry["points"] if value(point) is not None]
    shares = 100 * np.array([point[quantity] for point in points])
    bounds = 100 * np.array([point[f"{quantity}_interval"] for point in points]).reshape(-1, 2)
    reach = np.abs(bounds.T - shares)
    axes.errorbar(
        [value(point) for point in points],
        shares,
        yerr=reach,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
        markersize=5,
        linewidth=1.6,
        elinewidth=0.8,
        capsize=2,
        alpha=0.9,
        label=shorten(entry["label"], NAME_WIDTH),
    )


def _finish(axes: Any, name: str, document: Mapping[str, Any], *, energy: bool, steps: bool) -> None:
    axes.set_xlabel(name, fontsize=9)
    if document["source"]["accuracy"] is not None:
        accuracy = 100 * document["source"]["accuracy"]
        axes.axhline(
            accuracy, color="black", linestyle="--", linewidth=1.1, label=f"source, {accuracy:.2f} %", zorder=0
        )
    if energy:
        axes.axvline(1.0, color="0.2", linestyle=":", linewidth=1.8, label="energy of the source", zorder=0)
    axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 1.05 if energy else 0))
    if steps:
        axes.set_xticks(
            document["steps"] if len(document["steps"]) <= 8 else document["steps"][:: len(document["steps"]) // 8]
        )
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _limit(axes: Any, fitting: list[Mapping[str, Any]], quantity: str) -> None:
    lowest = min(100 * point[f"{quantity}_interval"][0] for entry in fitting for point in entry["points"])
    axes.set_ylim(max(min(lowest - 2, axes.get_ylim()[0]), 0.0), min(axes.get_ylim()[1], 101.0))
