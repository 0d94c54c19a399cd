"""Evaluation -> PNG: accuracy over steps, and how often each site fires."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from .._evaluate import Evaluation
from ..errors import ConfigError
from ..measure import Agreement, Tally, interval
from .drawing import BLUE, NAMED_STEPS, VERMILION, end_of_name, new_figure, plain_style, save_picture, step_ticks

WIDTH = 7.5  # inches, 1200 pixels; at 800 the 10 pt text is 15 pixels high
NAMED_SITES = 40


def accuracy_picture(evaluation: Evaluation, path: Path) -> Path:
    """Accuracy and agreement after each step with 95 % intervals; the source's accuracy is the dashed line.

    Raises: MissingExtra without matplotlib.
    """
    score = evaluation.score
    with plain_style():
        figure = new_figure(WIDTH, 4.6)
        axes = figure.add_subplot()
        lines = [("agreement with the source model", VERMILION, "s", score.agreement, score.samples)]
        if score.accuracy is not None:
            lines.append(("accuracy", BLUE, "o", score.accuracy, score.labelled))
        for name, colour, marker, shares, samples in lines:
            _line(axes, name, colour, marker, shares, samples)
        if score.source_accuracy is not None:
            label = f"source model, {100 * score.source_accuracy:.2f} %"
            axes.axhline(100 * score.source_accuracy, color="black", linestyle="--", linewidth=1.3, label=label)
        _finish(axes, score)
        return save_picture(figure, path)


def firing_picture(tally: Tally, path: Path) -> Path:
    """Heat map of spikes per neuron, a row per site and a column per step; below it the mean of all neurons.

    Raises: MissingExtra without matplotlib; ConfigError when the tally has no site.
    """
    if not tally.spikes:
        raise ConfigError("there is no site to draw; convert with at least one layer that spikes")
    rates, mean = tally.rates(), tally.spikes_per_neuron()[None]
    grid = np.stack(list(rates.values()))
    height = min(max(0.21 * len(grid), 1.5), 0.21 * NAMED_SITES)
    with plain_style():
        figure = new_figure(WIDTH, height + 1.9)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(height, 0.42))
        scale = {"vmin": 0.0, "vmax": float(grid.max()) or 1.0, "cmap": "YlGnBu", "aspect": "auto"}
        extent = (0.5, tally.steps + 0.5)
        image = upper.imshow(grid, extent=(*extent, len(grid) - 0.5, -0.5), interpolation="nearest", **scale)
        lower.imshow(mean, extent=(*extent, 0.5, -0.5), interpolation="nearest", **scale)
        _name_sites(upper, list(rates))
        _write_mean(lower, mean[0], scale["vmax"])
        upper.set_title(f"Spikes per neuron in each step, mean of {tally.samples:,} samples", fontsize=11)
        upper.tick_params(bottom=False)
        lower.set_xlabel("step t")
        lower.set_xticks(step_ticks(tally.steps))
        figure.colorbar(image, ax=[upper, lower], label="spikes per neuron and step", aspect=5 * (height + 1), pad=0.02)
        return save_picture(figure, path)


def _line(axes: Any, name: str, colour: str, marker: str, shares: list[float], samples: int) -> None:
    steps = np.arange(1, len(shares) + 1)
    low, high = zip(*(interval(share, samples) for share in shares), strict=True)
    if len(shares) > 1:
        axes.fill_between(steps, 100 * np.array(low), 100 * np.array(high), color=colour, alpha=0.16, linewidth=0)
    else:  # a band needs two steps to have an area
        axes.vlines(steps, 100 * low[0], 100 * high[0], color=colour, alpha=0.5, linewidth=4)
    size = 5 if len(shares) <= 2 * NAMED_STEPS else 0
    axes.plot(steps, 100 * np.array(shares), color=colour, marker=marker, markersize=size, linewidth=1.8, label=name)


def _finish(axes: Any, score: Agreement) -> None:
    axes.set_ylabel("share of samples (%)")
    axes.set_xlabel("step t")
    axes.set_xlim(0.7, score.steps + 0.3)
    axes.set_ylim(max(axes.get_ylim()[0], 0.0), min(axes.get_ylim()[1], 101.0))
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(step_ticks(score.steps))
    labelled = "" if score.labelled in (0, score.samples) else f", {score.labelled:,} labelled"
    title = f"After each step, {score.samples:,} samples{labelled}; shaded: 95 % intervals"
    axes.set_title(title, fontsize=11, loc="left", pad=27)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9, borderaxespad=0.2)


def _name_sites(axes: Any, names: list[str]) -> None:
    stride = ceil(len(names) / NAMED_SITES)
    rows = range(0, len(names), stride)
    axes.set_yticks(rows, [end_of_name(names[row]) for row in rows], fontsize=8, parse_math=False)
    axes.set_ylabel("site" if stride == 1 else f"site ({len(names)} in all, one in {stride} named)")


def _write_mean(axes: Any, mean: np.ndarray, largest: float) -> None:
    axes.set_yticks([0], ["mean of all neurons"], fontsize=8)
    size, turn = (8, 90) if len(mean) > NAMED_STEPS // 2 else (9, 0)
    steps = step_ticks(len(mean))
    if len(mean) > 2 * NAMED_STEPS:  # the first and last column are too narrow: text would cross the frame
        steps = [step for step in steps if 1 < step < len(mean)]
    for step in steps:
        colour = "white" if mean[step - 1] > 0.55 * largest else "black"
        text = f"{mean[step - 1]:.2f}"
        axes.text(step, 0, text, color=colour, fontsize=size, rotation=turn, ha="center", va="center")
