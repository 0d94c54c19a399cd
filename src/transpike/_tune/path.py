"""Effects of single changes -> the greedy path: most energy saved per error added, first."""

from __future__ import annotations

from dataclasses import dataclass

from .space import Choice, Setting


@dataclass(frozen=True)
class Effect:
    """What one change in one unit does to the network, all else as it is: differences, few samples, `steps` steps."""

    unit: int
    choice: Choice
    error: float
    agreement: float
    energy: float
    spikes: float


def path(center: Setting, effects: list[Effect]) -> list[Setting]:
    """Settings from the least error to the least energy, one unit's choice changed at a time.

    Effects are taken to add up. Each unit walks the lower convex hull of its own choices in the plane of error and
    energy; the moves of all units are merged by error added per energy saved, so that every prefix is the greedy
    choice for its energy.
    """
    setting, moves = list(center), []
    for unit, choice in enumerate(center):
        own = [(0.0, 0.0, choice), *((e.error, e.energy, e.choice) for e in effects if e.unit == unit)]
        first, *rest = _hull(own)
        setting[unit] = first
        moves += [(rate, unit, item) for rate, item in rest]
    found = [tuple(setting)]
    for _, unit, item in sorted(moves, key=lambda move: move[0]):  # stable: a unit's own rates ascend
        setting[unit] = item
        found.append(tuple(setting))
    return found


def _hull(points: list[tuple[float, float, Choice]]) -> list:
    """The choice of least error, then (rate, choice) of each corner of the hull towards less energy."""
    error, energy, choice = min(points, key=lambda point: point[:2])
    found: list = [choice]
    while True:
        cheaper = [((e - error) / (energy - c), e, c, item) for e, c, item in points if c < energy]
        if not cheaper:
            return found
        rate, error, energy, choice = min(cheaper, key=lambda point: (point[0], point[2]))
        found.append((rate, choice))


def ranked(setting: Setting, center: Setting, effects: list[Effect], *, saves: bool) -> list[tuple[int, Choice]]:
    """Single changes of `setting` worth trying, best first: by error added per energy saved, or by error taken away per
    energy added."""
    known = {(e.unit, e.choice): (e.error, e.energy) for e in effects}
    known |= dict.fromkeys(enumerate(center), (0.0, 0.0))
    found = []
    for (unit, choice), (error, energy) in known.items():
        now = known.get((unit, setting[unit]))
        if now is None or choice == setting[unit]:
            continue
        more, saved = error - now[0], now[1] - energy
        if saves and saved > 0:
            found.append((more / saved, unit, choice))
        elif not saves and more < 0:
            found.append((more / max(-saved, 1e-9), unit, choice))
    return [(unit, choice) for _, unit, choice in sorted(found, key=lambda item: item[:2])]
