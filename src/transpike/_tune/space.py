"""What tuning may choose: a threshold's scale, the number of levels and the cutoff, by site or by group of sites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ConfigError
from ..observers import RangeRule
from ..recipes import Recipe, SiteChoice
from ..types import Site, Threshold

CUTOFFS = (0.5, 1.0)
GROUPINGS = ("site", "role")
NUMBERED = re.compile(r"(?<![^.])\d+(?![^.:])")  # a whole part of a module path, as the 3 of blocks.3.mlp.fc1


@dataclass(frozen=True)
class Choice:
    """How one unit differs from the base recipe: thresholds times 2^(scale/2), `levels` more levels, this cutoff."""

    scale: int = 0
    levels: int = 0
    cutoff: float | None = None

    @property
    def factor(self) -> float:
        return 2.0 ** (self.scale / 2)

    def __str__(self) -> str:
        scale = f"threshold x{self.factor:.3g}" if self.scale else ""
        levels = f"levels {self.levels:+d}" if self.levels else ""
        cutoff = "" if self.cutoff is None else f"cutoff {self.cutoff:g}"
        return ", ".join(filter(None, (scale, levels, cutoff))) or "as it is"


Setting = tuple[Choice, ...]  # one per unit


@dataclass(frozen=True)
class Unit:
    """Sites that are chosen for together."""

    name: str
    sites: tuple[Site, ...]


def units_of(sites: Iterable[Site], by: str) -> tuple[Unit, ...]:
    """One unit per site; or, by role, one for all sites whose module paths differ only in a number: the same place in
    every block. Raises ConfigError for another word."""
    if by not in GROUPINGS:
        raise ConfigError(f"sites are tuned by {' or '.join(GROUPINGS)}, not by {by!r}")
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.name if by == "site" else NUMBERED.sub("#", site.name), []).append(site)
    return tuple(Unit(name, tuple(group)) for name, group in groups.items())


@dataclass(frozen=True)
class Space:
    """All settings of a base recipe on these units."""

    base: Recipe
    units: tuple[Unit, ...]

    @property
    def start(self) -> Setting:
        return (Choice(),) * len(self.units)

    @property
    def has_cutoff(self) -> bool:
        return any(field.name == "cutoff" for field in fields(self.base.neuron))  # type: ignore[arg-type]

    @property
    def has_levels(self) -> bool:
        return any(field.name == "levels" for field in fields(self.base.neuron))  # type: ignore[arg-type]

    def everywhere(self, choice: Choice) -> Setting:
        """The same choice in every unit, as far as each allows it."""
        return tuple(choice if self.allows(unit, choice) else Choice() for unit in self.units)

    def neighbours(self, unit: Unit, choice: Choice) -> tuple[Choice, ...]:
        """Choices that change one thing: the scale by one or two half octaves, the levels by two, the cutoff."""
        found = [replace(choice, scale=choice.scale + change) for change in (-2, -1, 1, 2)]
        found += [replace(choice, levels=choice.levels + change) for change in (-2, 2)]
        now = self.of(unit.sites[0], choice).cutoff
        found += [replace(choice, cutoff=cutoff) for cutoff in CUTOFFS if now is not None and cutoff != now]
        return tuple(item for item in found if self.allows(unit, item))

    def allows(self, unit: Unit, choice: Choice) -> bool:
        bases = [self.base.choice(site) for site in unit.sites]
        scalable = all(item.threshold is not None or _has_margin(item.range) for item in bases)
        levels = all(1 <= (item.levels or 0) + choice.levels <= 24 for item in bases)
        return (
            (choice.scale == 0 or scalable)
            and (choice.levels == 0 or (self.has_levels and levels))
            and (choice.cutoff is None or self.has_cutoff)
        )

    def of(self, site: Site, choice: Choice) -> SiteChoice:
        """Everything that a choice decides for one site, spelled out."""
        base = self.base.choice(site)
        return _spelled(base, choice, getattr(self.base.neuron, "cutoff", None))

    def recipe(self, setting: Setting, *, steps: int | None = None) -> Recipe:
        """The recipe of a setting: the commonest choice as its own, a pattern for every site that differs."""
        common = Counter(setting).most_common(1)[0][0]
        whole = SiteChoice(self.base.neuron.levels, self.base.range, None)
        usual = _spelled(whole, common, getattr(self.base.neuron, "cutoff", None))
        cutoff = {"cutoff": usual.cutoff} if self.has_cutoff else {}
        levels = {"levels": usual.levels} if self.has_levels and 1 <= (usual.levels or 0) <= 24 else {}
        sites = tuple(site for unit in self.units for site in unit.sites)
        idle = self.base.unused_patterns(sites)
        recipe = replace(
            self.base,
            name=f"{self.base.name.removesuffix('-tuned')}-tuned",
            neuron=replace(self.base.neuron, **levels, **cutoff),  # type: ignore[type-var]
            range=usual.range or self.base.range,
            patterns={key: value for key, value in self.base.patterns.items() if key not in idle},
            steps=self.base.steps if steps is None else steps,
        )
        differing: dict[str, SiteChoice] = {}
        for unit, choice in zip(self.units, setting, strict=True):
            wanted = {site.name: self.of(site, choice) for site in unit.sites}
            given = {site.name: _whole(recipe, site) for site in unit.sites}
            differing |= _patterns(unit, {name: item for name, item in wanted.items() if item != given[name]}, sites)
        return replace(recipe, patterns={**recipe.patterns, **differing})


def _whole(recipe: Recipe, site: Site) -> SiteChoice:
    """A recipe's choice for a site with the neuron's own cutoff spelled out."""
    choice = recipe.choice(site)
    return choice if choice.cutoff is not None else replace(choice, cutoff=getattr(recipe.neuron, "cutoff", None))


def _patterns(unit: Unit, differing: dict[str, SiteChoice], sites: tuple[Site, ...]) -> dict[str, SiteChoice]:
    """Choices by pattern: one for the whole unit, where all its sites have the same and no other site matches."""
    pattern = _literally(unit.name).replace("#", "*")
    alike = len(differing) == len(unit.sites) and len(set(map(str, differing.values()))) == 1
    matching = {site.name for site in sites if fnmatchcase(site.name, pattern)}
    if alike and matching == set(differing):
        return {pattern: next(iter(differing.values()))}
    return {_literally(name): choice for name, choice in differing.items()}


def _spelled(base: SiteChoice, choice: Choice, cutoff: float | None) -> SiteChoice:
    given, rule = base.threshold, base.range
    if choice.scale and given is not None:
        given = Threshold(given.positive * choice.factor, given.negative * choice.factor)
    elif choice.scale and _has_margin(rule):
        rule = replace(rule, margin=rule.margin * choice.factor)  # type: ignore[union-attr, type-var]
    levels = None if base.levels is None else base.levels + choice.levels
    own = cutoff if base.cutoff is None else base.cutoff
    return SiteChoice(levels, rule, given, own if choice.cutoff is None else choice.cutoff)


def _has_margin(rule: RangeRule | None) -> bool:
    return rule is not None and any(field.name == "margin" for field in fields(rule))  # type: ignore[arg-type]


def _literally(name: str) -> str:
    """A pattern that matches this name only."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def words(setting: Setting) -> str:
    """A setting in a few words: the commonest choice, and how many units differ."""
    common, count = Counter(setting).most_common(1)[0]
    return str(common) if count == len(setting) else f"{common}; {len(setting) - count} of {len(setting)} differ"


def setting_to_json(space: Space, setting: Setting) -> dict[str, Any]:
    """By unit: [scale, levels, cutoff] as in `Choice`."""
    pairs = zip(space.units, setting, strict=True)
    return {unit.name: [choice.scale, choice.levels, choice.cutoff] for unit, choice in pairs}
