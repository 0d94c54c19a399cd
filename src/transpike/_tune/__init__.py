"""The search for a recipe's settings on calibration samples alone: steps, and thresholds, levels and cutoffs by site.

What a setting is worth is measured against the source model's own outputs, so no label is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._arguments import require_count
from .._capture import capture
from .._convert import check_inputs, peek, place_sites
from ..calibration import observe
from ..errors import ConfigError
from ..observers import Balanced
from ..recipes import Recipe, recipe_named
from .journal import Journal
from .judge import Judge, Progress, Trajectory
from .path import Effect, path
from .search import Search, Spent, front
from .space import Choice, Setting, Space, units_of
from .target import Target

SENSITIVITY_STEPS = 4  # more cost more, and rank the sites alike


@dataclass(frozen=True)
class Tuned:
    """The best setting found for the target (`reached`: whether it is met on the judging samples), and all on the way.

    recipe, steps -- the choice. judged -- what every setting gave on the judging samples. effects -- sensitivities
    around `center`, with `few` samples at `sensitivity_steps` steps; `base` is what center itself gave there.
    """

    target: Target
    reached: bool
    recipe: Recipe
    setting: Setting
    steps: int
    choices_of_steps: tuple[int, ...]
    space: Space
    judged: Mapping[Setting, Trajectory]
    center: Setting
    base: Trajectory
    sensitivity_steps: int
    effects: tuple[Effect, ...]
    calibrated: int
    measured: int
    resumed: int

    @property
    def found(self) -> Trajectory:
        return self.judged[self.setting]

    @property
    def front(self) -> list[tuple[Setting, int]]:
        return front(dict(self.judged), self.choices_of_steps)


def tune(
    model: torch.nn.Module,
    ranges: Iterable[Any],
    judging: Iterable[Any],
    recipe: str | Recipe = "ecmt",
    *,
    max_drop: float | None = None,
    max_energy: float | None = None,
    steps: Sequence[int] = (1, 2, 4, 8),
    by: str = "site",
    few: int = 32,
    settings: int = 60,
    batch_dim: int = 0,
    journal: str | Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Find the cheapest settings that still agree with the source, or the closest ones for a given energy.

    Arguments: ranges -- unlabelled batches that set thresholds, as `calibration` of `transpike.convert`; judging --
    other such batches, which judge settings by agreement with the source and by output error; recipe -- what to start
    from; max_drop -- percentage points of agreement; max_energy -- ratio to the source in the paper's account; steps
    -- the numbers of steps to choose from; by -- "site", or "role": one choice for the same place in every block; few
    -- samples for the sensitivity of single sites; settings -- how many settings are judged at most; journal -- a file
    that lets a stopped search go on; progress -- told (stage, done, of).
    Raises: ConfigError for impossible options; what concerns the model or the samples as `convert` does.
    """
    target = Target(max_drop, max_energy)
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    if recipe.correction != "none":
        raise ConfigError("settings are judged without a correction; tune with correction 'none'")
    if isinstance(recipe.range, Balanced):  # a scale or more levels at one site would be allocated away again
        raise ConfigError(
            f"{recipe.name} sets the thresholds and levels of all sites together, so there is no site to tune; choose "
            "its divergence or energy, or tune cascade, which has the same neurons"
        )
    asked = _checked(steps, few, settings)
    check_inputs(model, ranges)
    example, ranges = peek(ranges, None)
    sited = place_sites(model, capture(model, example, batch_dim=batch_dim), recipe, example)
    space = Space(recipe, units_of(sited.plan.sites, by))
    records = Journal(journal)
    seen = observe(sited.captured, sited.graph, sited.plan, [recipe], ranges, max_samples=None)
    judge = Judge(sited, seen, judging, recipe, records, settings * asked[-1])
    search = Search(space, judge, target, asked, settings, progress)
    with contextlib.suppress(Spent):
        search.everywhere()
    center, t = search.best()
    steps_there = min(t, SENSITIVITY_STEPS)
    effects = search.sensitivity(center, steps=steps_there, few=few)
    with contextlib.suppress(Spent):
        search.along(path(center, effects))
        search.refine(center, effects)
    setting, t = search.best()
    return Tuned(
        target=target,
        reached=target.misses_by(search.judged[setting], t) == 0,
        recipe=space.recipe(setting, steps=t),
        setting=setting,
        steps=t,
        choices_of_steps=asked,
        space=space,
        judged=search.judged,
        center=center,
        base=judge(space.recipe(center), steps=steps_there, few=few),
        sensitivity_steps=steps_there,
        effects=tuple(effects),
        calibrated=seen.samples,
        measured=judge.run,
        resumed=len(judge.resumed),
    )


def _checked(steps: Sequence[int], few: int, settings: int) -> tuple[int, ...]:
    numbers = {"few": few, "settings": settings, **{f"steps[{i}]": t for i, t in enumerate(steps)}}
    for name, value in numbers.items():
        require_count(name, value)
    if not steps:
        raise ConfigError("steps must name at least one number of steps")
    return tuple(sorted(set(steps)))


__all__ = ["Choice", "Effect", "Target", "Trajectory", "Tuned", "tune"]
