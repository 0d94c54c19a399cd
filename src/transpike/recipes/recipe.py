"""What a recipe is: a frozen value that serialises to JSON."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .._arguments import require_count
from ..errors import ConfigError
from ..multi_basis import Approximation
from ..neurons import NEURONS, Neuron
from ..observers import RANGE_RULES, Balanced, RangeRule
from ..policy import Policy
from ..types import Site, SiteKind, Threshold

CORRECTIONS = ("none", "bias", "distribution")


@dataclass(frozen=True)
class SiteChoice:
    """What differs for some sites; None keeps the recipe's choice. `threshold` is given instead of calibrated;
    `cutoff` is the neuron's, where it has one."""

    levels: int | None = None
    range: RangeRule | None = None
    threshold: Threshold | None = None
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.levels is not None and (not isinstance(self.levels, int) or not 1 <= self.levels <= 255):
            raise ConfigError(f"levels must be a whole number from 1 to 255, not {self.levels!r}")


@dataclass(frozen=True)
class Recipe:
    """How to convert: printed in the plan, stored with the model.

    Arguments:
        name -- for reports. neuron -- the neuron of every site. range -- how calibration sets thresholds.
        policy -- where neurons go. kinds -- choices by kind of site (`SiteKind`); patterns -- choices by site name
        (as in `fnmatch`, for example "blocks.0.*" or "*.mlp.fc2:input"); patterns win over kinds, later over earlier.
        site_levels -- levels by site name where calibration has decided them; they win over the choices above.
        threshold_bits -- calibrated thresholds are rounded up to this many significant bits, so that every level is
        exact in bfloat16 (8 bits) and every sum of levels exact in float32; None keeps them as they come.
        product_terms -- how a product of two spiking signals is updated in a step: 3 terms as published (spike x spike,
        spike x sum, sum x spike), or 2 (spike x new sum, sum x spike), which gives the same for fewer operations.
        steps -- used where a caller names none. operators -- how nonlinear ones are approximated; None: they are exact.
        correction -- of `transpike.correct`, or "none". sequential -- calibration shows a site what the converted
        sites before it let through after `steps` steps, in the order of the graph, not what the source has there; all
        calibration samples are in memory at once.
    """

    name: str
    neuron: Neuron
    range: RangeRule
    policy: Policy = field(default_factory=Policy)
    kinds: Mapping[SiteKind, SiteChoice] = field(default_factory=dict)
    patterns: Mapping[str, SiteChoice] = field(default_factory=dict)
    threshold_bits: int | None = 8
    product_terms: int = 3
    steps: int = 8
    site_levels: Mapping[str, int] = field(default_factory=dict)
    operators: Approximation | None = None
    correction: str = "none"
    sequential: bool = False

    def __post_init__(self) -> None:
        if (bits := self.threshold_bits) is not None and (not isinstance(bits, int) or not 1 <= bits <= 24):
            raise ConfigError(f"threshold_bits must be a whole number from 1 to 24, or None, not {bits!r}")
        for name, levels in self.site_levels.items():
            if not 1 <= levels <= 255:
                raise ConfigError(f"levels of site {name} must be a whole number from 1 to 255, not {levels!r}")
        if self.product_terms not in (2, 3):
            raise ConfigError(f"product_terms must be 2 or 3, not {self.product_terms!r}")
        if self.correction not in CORRECTIONS:
            raise ConfigError(f"correction must be one of {', '.join(CORRECTIONS)}, not {self.correction!r}")
        require_count("steps", self.steps)
        if not isinstance(self.sequential, bool):
            raise ConfigError(f"sequential must be True or False, not {self.sequential!r}")
        for key, choice in (*self.kinds.items(), *self.patterns.items()):
            if isinstance(choice.range, Balanced) and choice.range != self.range:
                raise ConfigError(
                    f"rule balanced is for all sites together, not for {key}; make it the recipe's range, and name "
                    "another rule for the sites that it is to leave out"
                )
        if self.sequential and isinstance(self.range, Balanced):
            raise ConfigError("balanced thresholds are set for all sites together; use sequential with another rule")

    def choice(self, site: Site) -> SiteChoice:
        """The levels, range rule and given threshold that hold for one site."""
        merged = SiteChoice(self.neuron.levels, self.range, None)
        found = [self.kinds.get(site.kind)]
        found += [choice for pattern, choice in self.patterns.items() if fnmatch.fnmatchcase(site.name, pattern)]
        for choice in filter(None, found):
            given = {f.name: getattr(choice, f.name) for f in fields(choice) if getattr(choice, f.name) is not None}
            merged = replace(merged, **given)
        if site.name in self.site_levels:
            merged = replace(merged, levels=self.site_levels[site.name])
        return merged

    def neuron_for(self, site: Site) -> Neuron:
        choice = self.choice(site)
        cutoff = {} if choice.cutoff is None else {"cutoff": choice.cutoff}
        if cutoff and not hasattr(self.neuron, "cutoff"):
            raise ConfigError(f"neuron {self.neuron.name} has no cutoff; drop it for site {site.name}")
        return replace(self.neuron, levels=choice.levels, **cutoff)  # type: ignore[type-var]

    def unused_patterns(self, sites: tuple[Site, ...]) -> list[str]:
        return [p for p in self.patterns if not any(fnmatch.fnmatchcase(site.name, p) for site in sites)]

    def lines(self) -> tuple[str, ...]:
        """The settings in words, for the plan."""
        bits = f", thresholds rounded up to {self.threshold_bits} bits" if self.threshold_bits else ""
        special = [f"{key}: {_words(choice)}" for key, choice in {**self.kinds, **self.patterns}.items()]
        if found := self.site_levels.values():
            special.append(f"levels found by calibration: {min(found)} to {max(found)}")
        bits += "" if self.correction == "none" else f", corrected by channel ({self.correction})"
        bits += ", calibrated site after site" if self.sequential else ""
        return (f"recipe {self.name}: {_spelled(self.neuron)}, {_spelled(self.range)}{bits}", *special)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "neuron": {"type": self.neuron.name, **asdict(self.neuron)},  # type: ignore[call-overload]
            "range": {"type": self.range.name, **_settings(self.range)},
            "policy": self.policy.to_json(),
            "kinds": {str(kind): _choice_to_json(choice) for kind, choice in self.kinds.items()},
            "patterns": {pattern: _choice_to_json(choice) for pattern, choice in self.patterns.items()},
            "site_levels": dict(self.site_levels),
            "threshold_bits": self.threshold_bits,
            "product_terms": self.product_terms,
            "steps": self.steps,
            "operators": self.operators and self.operators.to_json(),
            "correction": self.correction,
            **({"sequential": True} if self.sequential else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Recipe:
        """What is left out has the default of `Recipe`. Raises ConfigError naming what is missing, unknown or out of
        range."""
        plain = ("threshold_bits", "product_terms", "steps", "correction", "sequential")
        try:
            return Recipe(
                name=str(data["name"]),
                neuron=_build(NEURONS, data["neuron"], "neuron"),
                range=_build(RANGE_RULES, data["range"], "range rule"),
                policy=Policy(**data.get("policy", {})),
                kinds={SiteKind(kind): _choice_from_json(choice) for kind, choice in data.get("kinds", {}).items()},
                patterns={pattern: _choice_from_json(choice) for pattern, choice in data.get("patterns", {}).items()},
                site_levels={str(name): int(levels) for name, levels in data.get("site_levels", {}).items()},
                operators=data.get("operators") and Approximation.from_json(data["operators"]),
                **{key: data[key] for key in plain if key in data},
            )
        except ConfigError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a recipe: {type(error).__name__} at {error}") from error


def _spelled(value: Any) -> str:
    return f"{value.name}({', '.join(f'{key}={item}' for key, item in _settings(value).items())})"


def _settings(value: Any) -> dict[str, Any]:
    """Its fields, without the granularity that rules had before they had one: so files of then and now are alike."""
    usual = {field.name for field in fields(value) if field.name == "granularity" and field.default == "tensor"}
    return {key: item for key, item in asdict(value).items() if key not in usual or item != "tensor"}


def _words(choice: SiteChoice) -> str:
    levels = None if choice.levels is None else f"{choice.levels} levels"
    rule = None if choice.range is None else _spelled(choice.range)
    given = choice.threshold
    threshold = given and f"threshold {given.positive:g} / {given.negative:g}"
    cutoff = None if choice.cutoff is None else f"cutoff {choice.cutoff:g}"
    return ", ".join(filter(None, (levels, rule, threshold, cutoff)))


def _choice_to_json(choice: SiteChoice) -> dict[str, Any]:
    return {
        "levels": choice.levels,
        "range": choice.range and {"type": choice.range.name, **_settings(choice.range)},
        "threshold": None if choice.threshold is None else choice.threshold.to_json(),
        **({} if choice.cutoff is None else {"cutoff": choice.cutoff}),
    }


def _choice_from_json(data: Mapping[str, Any]) -> SiteChoice:
    rule, threshold = data.get("range"), data.get("threshold")
    return SiteChoice(
        data.get("levels"),
        None if rule is None else _build(RANGE_RULES, rule, "range rule"),
        None if threshold is None else Threshold(*map(float, threshold)),
        None if data.get("cutoff") is None else float(data["cutoff"]),
    )


def _build(table: Mapping[str, Any], data: Mapping[str, Any], what: str) -> Any:
    arguments = dict(data)
    kind = arguments.pop("type", None)
    if kind not in table:
        raise ConfigError(f"unknown {what} {kind!r}; known: {', '.join(table)}")
    return table[kind](**arguments)
