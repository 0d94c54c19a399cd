"""What all pictures share: colours, figures, ticks, names that fit, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MissingExtra
from ..files import write_atomically
from ..table import shorten

# Okabe and Ito's palette stays apart for every common form of colour blindness; markers say the same again.
BLUE, VERMILION = "#0072B2", "#D55E00"
DPI = 160
NAMED_STEPS = 16
NAME_WIDTH = 44
STRIDES = (1, 2, 4, 5, 10, 20, 50, 100, 200, 500, 1000)


def plain_style() -> Any:
    """matplotlib's own defaults, whatever style the user has set: dark on white."""
    try:
        import matplotlib.style
    except ImportError:
        raise MissingExtra("matplotlib", "plots", "drawing the report's pictures") from None
    return matplotlib.style.context("default")


def new_figure(width: float, height: float) -> Any:
    """A figure of that size in inches, drawn without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def step_ticks(steps: int) -> list[int]:
    """Whole steps, few enough to read."""
    stride = next((s for s in STRIDES if s * NAMED_STEPS >= steps), steps)
    return [*([1] if stride > 2 else []), *range(stride, steps + 1, stride)]


def end_of_name(name: str) -> str:
    """The last components of a site's name that fit: unlike the first ones, they tell the layers apart."""
    rest = name
    while len(rest) > NAME_WIDTH and "." in rest:
        rest = rest.partition(".")[2]
    return shorten(rest, NAME_WIDTH) if rest == name else f"...{shorten(rest, NAME_WIDTH)}"


def save_picture(figure: Any, path: Path) -> Path:
    return write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
