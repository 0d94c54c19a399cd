"""Tuned -> tables and a JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from .._tune import Choice, Setting, Trajectory, Tuned
from .._tune.space import setting_to_json, words
from ..measure import interval
from ..table import Table, shorten
from .machine import versions
from .values import json_value, percent, percent_interval

FORMAT = "transpike-tuning"
FORMAT_VERSION = 1
NAMED = 6  # sites named of those that have the same setting; the recipe file has all


def sensitivity_table(tuned: Tuned) -> Table:
    """A row per site (or role), a column per change: the factor on the output error, and the change in spikes."""
    columns: dict[str, None] = {}
    cells: dict[int, dict[str, str]] = {}
    error, spikes = tuned.base.error[-1], tuned.base.spikes[-1]
    for effect in tuned.effects:
        change = _change(tuned.center[effect.unit], effect.choice)
        factor = f"x{1 + effect.error / error:.3g}" if error else f"+{effect.error:.2g}"
        columns[change] = None
        cells.setdefault(effect.unit, {})[change] = f"{factor} {100 * effect.spikes / max(spikes, 1e-12):+.1f}%"
    ordered = sorted(columns, key=lambda name: (name.split()[0], float(name.split()[1].lstrip("x"))))
    rows = tuple(
        (shorten(unit.name, 44), str(unit.sites[0].kind), *(cells.get(index, {}).get(name, "") for name in ordered))
        for index, unit in enumerate(tuned.space.units)
    )
    notes = (
        f"each change alone, around {words(tuned.center)!r}, which has output error {error:.3g} and "
        f"{spikes:.2f} spikes per neuron on {tuned.base.samples} samples at T = {tuned.sensitivity_steps}",
        "first number: factor on the output error (squared, relative to the source's outputs); second: change in the "
        "spikes of the whole network",
    )
    return Table("Sensitivity of single sites", ("site", "kind", *ordered), rows, notes)


def _change(before: Choice, after: Choice) -> str:
    if after.scale != before.scale:
        return f"threshold x{2 ** ((after.scale - before.scale) / 2):.3g}"
    if after.levels != before.levels:
        return f"levels {after.levels - before.levels:+d}"
    return f"cutoff {after.cutoff:g}"


def front_table(tuned: Tuned) -> Table:
    """Settings that no other judged one beats in both energy and agreement, the untuned recipe, and the chosen one."""
    chosen, start = (tuned.setting, tuned.steps), _untuned(tuned)
    points = tuned.front + [point for point in dict.fromkeys((chosen, start)) if point not in tuned.front]
    points.sort(key=lambda point: tuned.judged[point[0]].energy[point[1] - 1])
    rows = tuple(_row(tuned, setting, t, chosen, start) for setting, t in points)
    samples = tuned.found.samples
    notes = (
        f"{tuned.calibrated:,} samples set thresholds, {samples:,} other ones judge, no labels; {len(tuned.judged)} "
        f"settings at T = {', '.join(map(str, tuned.choices_of_steps))}",
        "error: of the outputs, squared, relative to the source's; energy: the paper's account, ratio to the source",
        "the chosen setting was chosen on these samples, so evaluate it on others: transpike eval --recipe FILE",
        *_doubt(tuned),
    )
    columns = ("", "T", "agreement %", "95 %", "error", "spikes/neuron", "energy", "setting")
    return Table(f"Choices, cheapest first; target: {tuned.target}", columns, rows, notes)


def choice_table(tuned: Tuned) -> Table:
    """A row per setting that sites of the chosen recipe have, the commonest first."""
    named: dict[str, list[str]] = {}
    for unit, choice in zip(tuned.space.units, tuned.setting, strict=True):
        named.setdefault(str(choice), []).append(unit.name)
    ordered = sorted(named.items(), key=lambda item: -len(item[1]))
    rows = tuple((setting, str(len(names)), _some(names)) for setting, names in ordered)
    return Table(f"Chosen: T = {tuned.steps}", ("setting", "how many", "sites"), rows)


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _doubt(tuned: Tuned) -> tuple[str, ...]:
    """What so few samples cannot tell."""
    samples, drop = tuned.found.samples, tuned.target.max_drop
    surest = 100 * interval(1.0, samples)[0]
    if drop is None or surest >= 100 - drop:
        return ()
    return (
        f"{samples:,} samples cannot prove {100 - drop:g} %: if all agree, the 95 % interval begins at {surest:.1f} %; "
        "more --samples make it surer",
    )


def _untuned(tuned: Tuned) -> tuple[Setting, int]:
    start = tuned.space.start
    return start, tuned.target.best_step(tuned.judged[start], tuned.choices_of_steps)


def _row(
    tuned: Tuned, setting: Setting, t: int, chosen: tuple[Setting, int], start: tuple[Setting, int]
) -> tuple[str, ...]:
    found = tuned.judged[setting]
    mark = "chosen" if (setting, t) == chosen else "untuned" if (setting, t) == start else ""
    agreement = found.agreement[t - 1]
    numbers = (f"{found.error[t - 1]:.4g}", f"{found.spikes[t - 1]:.2f}", f"{found.energy[t - 1]:.3f}")
    return (
        mark, str(t), percent(agreement), percent_interval(agreement, found.samples), *numbers, words(setting)
    )  # fmt: skip


def summary(tuned: Tuned) -> str:
    """One sentence: what was reached, with what."""
    found, t = tuned.found, tuned.steps
    gives = (
        f"T = {t} agrees with the source on {percent(found.agreement[t - 1])} % of {found.samples} samples for "
        f"{found.energy[t - 1]:.3f} of its energy, {found.spikes[t - 1]:.2f} spikes per neuron"
    )
    return (
        f"target reached: {gives}" if tuned.reached else f"target not reached ({tuned.target}); the best found: {gives}"
    )


def recipe_document(tuned: Tuned, *, data: Mapping[str, Any], command: list[str] | None = None) -> dict[str, Any]:
    """The recipe as `Recipe.from_json` reads it; "tuned" names the samples, which `transpike eval` then leaves out."""
    record = {**data, "target": str(tuned.target), "reached": tuned.reached, "command": command}
    return json_value({**tuned.recipe.to_json(), "tuned": record}, "recipe")


def tuning_document(
    tuned: Tuned,
    *,
    command: list[str] | None = None,
    source: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    seed: int | None = None,
    failed: Sequence[Mapping[str, Any]] = (),
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Everything that was measured, as JSON values; lists by step have index 0 for t = 1."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "target": asdict(tuned.target),
        "reached": tuned.reached,
        "steps": tuned.steps,
        "recipe": tuned.recipe.to_json(),
        "chosen": _point(tuned, tuned.setting, tuned.steps),
        "untuned": _point(tuned, *_untuned(tuned)),
        "front": [_point(tuned, setting, t) for setting, t in tuned.front],
        "judged": [_judged(tuned, setting, found) for setting, found in tuned.judged.items()],
        "sensitivity": {
            "center": setting_to_json(tuned.space, tuned.center),
            "steps": tuned.sensitivity_steps,
            "base": asdict(tuned.base),
            "effects": [{**asdict(e), "unit": tuned.space.units[e.unit].name} for e in tuned.effects],
        },
        "calibration": {"samples": tuned.calibrated, "judging": tuned.found.samples, "data": data},
        "source": source,
        "failed": {"count": len(failed), "items": failed},
        "command": command,
        "versions": versions(torch.device(device)),
        "seed": seed,
    }
    return json_value(content, "tuning")


def _judged(tuned: Tuned, setting: Setting, found: Trajectory) -> dict[str, Any]:
    return {"setting": setting_to_json(tuned.space, setting), **asdict(found), "agreement": found.agreement}


def _point(tuned: Tuned, setting: Setting, t: int) -> dict[str, Any]:
    found = tuned.judged[setting]
    return {
        "steps": t,
        "agreement": found.agreement[t - 1],
        "agreement_interval": interval(found.agreement[t - 1], found.samples),
        "error": found.error[t - 1],
        "spikes_per_neuron": found.spikes[t - 1],
        "energy": found.energy[t - 1],
        "setting": setting_to_json(tuned.space, setting),
    }
