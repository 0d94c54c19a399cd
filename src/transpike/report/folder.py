"""The report of one evaluation as files in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._evaluate import Evaluation
from ..files import write_json
from .energy_picture import energy_picture
from .pictures import accuracy_picture, firing_picture


def write_report(
    folder: Path, document: Mapping[str, Any], evaluation: Evaluation, *, pictures: bool = True
) -> list[Path]:
    """Write report.json, accuracy.png, energy.png and, when there is a site, firing.png; returns what was written.

    Raises: MissingExtra when matplotlib is absent (report.json is then already there); ConfigError when the folder
    cannot be written.
    """
    written = [write_json(folder / "report.json", document)]
    if pictures:
        written.append(accuracy_picture(evaluation, folder / "accuracy.png"))
        written.append(energy_picture(document["energy_sheet"], folder / "energy.png"))
        if evaluation.tally.spikes:
            written.append(firing_picture(evaluation.tally, folder / "firing.png"))
    return written
