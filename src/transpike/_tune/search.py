"""Space, Judge, Target -> settings judged: everywhere the same first, then site by site, greedily."""

from __future__ import annotations

from dataclasses import dataclass, field

from .judge import Judge, Progress, Trajectory
from .path import Effect, ranked
from .space import Choice, Setting, Space
from .target import Target


class Spent(Exception):
    """As many settings as allowed are judged."""


@dataclass
class Search:
    """Everything judged so far; the methods are the stages, in order.

    steps -- the numbers of steps to choose from, ascending. most -- settings judged at most.
    """

    space: Space
    judge: Judge
    target: Target
    steps: tuple[int, ...]
    most: int
    progress: Progress | None = None
    judged: dict[Setting, Trajectory] = field(default_factory=dict)

    def look(self, setting: Setting) -> Trajectory:
        if setting not in self.judged:
            if len(self.judged) >= self.most:
                raise Spent
            self.judged[setting] = self.judge(self.space.recipe(setting), steps=self.steps[-1])
            self._tell("judging settings", len(self.judged), self.most)
        return self.judged[setting]

    def _tell(self, stage: str, done: int, of: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, of)

    def best(self) -> tuple[Setting, int]:
        """The best setting and number of steps judged; of equal ones the first."""
        points = ((setting, t) for setting in self.judged for t in self.steps)
        return min(points, key=lambda point: self.target.key(self.judged[point[0]], point[1]))

    def everywhere(self) -> None:
        """The same choice in all units: levels and cutoff together, then the scale at the best of those."""
        self.look(self.space.start)
        cutoffs = (None, 0.5, 1.0) if self.space.has_cutoff else (None,)
        levels = (0, -2, 2) if self.space.has_levels else (0,)
        for cutoff in cutoffs:
            for change in levels:
                self.look(self.space.everywhere(Choice(0, change, cutoff)))
        setting, _ = self.best()
        choice = max(setting, key=lambda item: (item != Choice(), str(item)))
        for scale in (-2, -1, 1, 2):
            self.look(self.space.everywhere(Choice(scale, choice.levels, choice.cutoff)))

    def sensitivity(self, center: Setting, *, steps: int, few: int) -> list[Effect]:
        """What each single change of `center` does, on few samples at few steps."""
        changes = [
            (unit, choice)
            for unit, now in enumerate(center)
            for choice in self.space.neighbours(self.space.units[unit], now)
        ]
        before = self.judge(self.space.recipe(center), steps=steps, few=few)
        effects = []
        for done, (unit, choice) in enumerate(changes, start=1):
            setting = (*center[:unit], choice, *center[unit + 1 :])
            after = self.judge(self.space.recipe(setting), steps=steps, few=few)
            effects.append(_difference(unit, choice, before, after))
            self._tell("sensitivity of single sites", done, len(changes))
        return effects

    def along(self, settings: list[Setting]) -> None:
        """The last setting of the greedy path that still agrees, or the first that is cheap enough, for every number
        of steps, by bisection."""
        drops = self.target.max_drop is not None
        for t in self.steps:
            low, high = 0, len(settings) - 1  # `low` agrees, or is too dear
            good, other = (low, high) if drops else (high, low)
            if self._misses(settings[good], t) or not self._misses(settings[other], t):
                continue
            while high - low > 1:
                middle = (low + high) // 2
                if bool(self._misses(settings[middle], t)) != drops:
                    low = middle
                else:
                    high = middle

    def _misses(self, setting: Setting, t: int) -> float:
        return self.target.misses_by(self.look(setting), t)

    def refine(self, center: Setting, effects: list[Effect]) -> None:
        """Single changes of the best setting, best prediction first, kept where they help, until none does."""
        tried: set[tuple[Setting, int]] = set()
        while (start := self.best()) not in tried:
            tried.add(start)
            for unit, choice in ranked(start[0], center, effects, saves=self._saves(*start)):
                setting, _ = self.best()
                self.look((*setting[:unit], choice, *setting[unit + 1 :]))

    def _saves(self, setting: Setting, t: int) -> bool:
        return self.target.saves(self.judged[setting], t)


def _difference(unit: int, choice: Choice, before: Trajectory, after: Trajectory) -> Effect:
    return Effect(
        unit,
        choice,
        after.error[-1] - before.error[-1],
        after.agreement[-1] - before.agreement[-1],
        after.energy[-1] - before.energy[-1],
        after.spikes[-1] - before.spikes[-1],
    )


def front(judged: dict[Setting, Trajectory], steps: tuple[int, ...]) -> list[tuple[Setting, int]]:
    """Points that no other beats in both energy and agreement, by energy; of equal agreement the cheapest."""
    points = [
        (found.energy[t - 1], -found.same[t - 1], found.error[t - 1], setting, t)
        for setting, found in judged.items()
        for t in steps
    ]
    kept: list[tuple[Setting, int]] = []
    most = 1
    for _, same, _, setting, t in sorted(points, key=lambda point: point[:3]):
        if same < most:
            kept.append((setting, t))
            most = same
    return kept
