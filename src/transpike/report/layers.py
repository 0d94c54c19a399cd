"""The per-layer view as files in a folder, with what repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._levels import LevelCounts
from .._model import SpikingModel
from ..files import write_json
from ..measure.fidelity import LayerView
from .layers_picture import layers_picture
from .levels_picture import levels_picture
from .machine import versions
from .values import json_value


def layers_document(
    model: SpikingModel,
    view: LayerView,
    *,
    source: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    failed: list[dict[str, str]] | None = None,
    command: list[str] | None = None,
    seed: int | None = None,
    levels: LevelCounts | None = None,
) -> dict[str, Any]:
    """`view.to_json()` and everything needed to repeat it, as JSON values; `levels`: spikes by level, if counted."""
    content = {
        **view.to_json(),
        "levels": None if levels is None else levels.to_json(),
        "source": source,
        "recipe": model.recipe.to_json(),
        "thresholds": {name: threshold.to_json() for name, threshold in model.thresholds.items()},
        "calibration": {"samples": model.calibration.samples},
        "data": data,
        "failed": {"count": len(failed or ()), "items": failed or []},
        "command": command,
        "versions": versions(model.device),
        "seed": seed,
    }
    return json_value(content, "layers")


def write_layers(
    folder: Path, document: Mapping[str, Any], view: LayerView, levels: LevelCounts | None = None
) -> list[Path]:
    """Write layers.json, layers.png and, with `levels`, levels.png; returns what was written.

    Raises: MissingExtra when matplotlib is absent (layers.json is then already there); ConfigError when the folder
    cannot be written.
    """
    written = [write_json(folder / "layers.json", document), layers_picture(view, folder / "layers.png")]
    return written if levels is None else [*written, levels_picture(levels, folder / "levels.png")]
