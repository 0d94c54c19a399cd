"""Named methods: a recipe is a neuron, a range rule and a placement policy, with choices by kind of site or by name.

A recipe is a frozen value that serialises to JSON; `RECIPES` maps the names the command line takes to the functions
that build them. To add a published method, add its function and its row, and name every deviation in its docstring.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ._arguments import check_arguments
from .errors import ConfigError
from .neurons import NEURONS, Differential, FewSpikes, MultiThreshold, Neuron, PublishedMultiThreshold
from .observers import RANGE_RULES, Balanced, MinimumError, Percentile, RangeRule
from .policy import Policy
from .types import Site, SiteKind, Threshold


@dataclass(frozen=True)
class SiteChoice:
    """What differs for some sites; None keeps the recipe's choice. `threshold` is given instead of calibrated;
    `cutoff` is the neuron's, where it has one."""

    levels: int | None = None
    range: RangeRule | None = None
    threshold: Threshold | None = None
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.levels is not None and (not isinstance(self.levels, int) or not 1 <= self.levels <= 24):
            raise ConfigError(f"levels must be a whole number from 1 to 24, not {self.levels!r}")


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
        steps -- the number of steps used where a caller names none.
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

    def __post_init__(self) -> None:
        bits = self.threshold_bits
        if bits is not None and (not isinstance(bits, int) or not 1 <= bits <= 24):
            raise ConfigError(f"threshold_bits must be a whole number from 1 to 24, or None, not {bits!r}")
        for name, levels in self.site_levels.items():
            if not 1 <= levels <= 24:
                raise ConfigError(f"levels of site {name} must be a whole number from 1 to 24, not {levels!r}")
        if self.product_terms not in (2, 3):
            raise ConfigError(f"product_terms must be 2 or 3, not {self.product_terms!r}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(f"steps must be a whole number of at least 1, not {self.steps!r}")

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
        return (f"recipe {self.name}: {_spelled(self.neuron)}, {_spelled(self.range)}{bits}", *special)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "neuron": {"type": self.neuron.name, **asdict(self.neuron)},  # type: ignore[call-overload]
            "range": _range_to_json(self.range),
            "policy": asdict(self.policy),
            "kinds": {str(kind): _choice_to_json(choice) for kind, choice in self.kinds.items()},
            "patterns": {pattern: _choice_to_json(choice) for pattern, choice in self.patterns.items()},
            "site_levels": dict(self.site_levels),
            "threshold_bits": self.threshold_bits,
            "product_terms": self.product_terms,
            "steps": self.steps,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Recipe:
        """Raises ConfigError naming what is missing, unknown or out of range."""
        try:
            return Recipe(
                name=str(data["name"]),
                neuron=_build(NEURONS, data["neuron"], "neuron"),
                range=_build(RANGE_RULES, data["range"], "range rule"),
                policy=Policy(**data.get("policy", {})),
                kinds={SiteKind(kind): _choice_from_json(choice) for kind, choice in data.get("kinds", {}).items()},
                patterns={pattern: _choice_from_json(choice) for pattern, choice in data.get("patterns", {}).items()},
                site_levels={str(name): int(levels) for name, levels in data.get("site_levels", {}).items()},
                threshold_bits=data.get("threshold_bits"),
                product_terms=data.get("product_terms", 3),
                steps=int(data.get("steps", 8)),
            )
        except ConfigError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a recipe: {type(error).__name__} at {error}") from error


def _spelled(value: Any) -> str:
    return f"{value.name}({', '.join(f'{key}={item}' for key, item in asdict(value).items())})"


def _words(choice: SiteChoice) -> str:
    levels = None if choice.levels is None else f"{choice.levels} levels"
    rule = None if choice.range is None else _spelled(choice.range)
    given = choice.threshold
    threshold = given and f"threshold {given.positive:g} / {given.negative:g}"
    cutoff = None if choice.cutoff is None else f"cutoff {choice.cutoff:g}"
    return ", ".join(filter(None, (levels, rule, threshold, cutoff)))


def _range_to_json(rule: RangeRule) -> dict[str, Any]:
    return {"type": rule.name, **asdict(rule)}  # type: ignore[call-overload]


def _choice_to_json(choice: SiteChoice) -> dict[str, Any]:
    return {
        "levels": choice.levels,
        "range": None if choice.range is None else _range_to_json(choice.range),
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


def round_up(value: float, bits: int | None) -> float:
    """The float with `bits` significant bits of the smallest magnitude that is not below that of `value`; same sign."""
    if bits is None or value == 0:
        return value
    mantissa, exponent = math.frexp(abs(value))
    return math.copysign(math.ldexp(math.ceil(mantissa * 2**bits) / 2**bits, exponent), value)


def _rule(name: str, percentile: float, symmetric: bool) -> RangeRule:
    """ "percentile", or "mse" (one threshold for both signs of least squared error)."""
    if name not in ("percentile", "mse"):
        raise ConfigError(f"rule must be percentile or mse, not {name!r}")
    return Percentile(percentile, symmetric) if name == "percentile" else MinimumError()


# --- published methods -----------------------------------------------------------------------------------------------


def ecmt(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    symmetric: bool = False,
    cutoff: float = 1.0,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """ECMT as the paper has it: the calibrated base is the largest level, the nearest level fires.

    Source: arXiv 2502.21193. Left open there and chosen here: the percentile (1, the maximum: what a ceiling clips, no
    number of steps brings back), one threshold per sign and tensor, a neuron before the head, ties to the larger
    level, thresholds rounded up to 8 significant bits. Best measured settings: symmetric=True, cutoff=0.5, levels=10.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    return Recipe("ecmt", MultiThreshold(levels, cutoff), _rule(rule, percentile, symmetric), policy)


def ecmt_code(
    *,
    levels: int = 8,
    percentile: float = 0.99,
    softmax: float | None = 0.0125,
    fc2: tuple[float, float] | None = (0.25, 0.08),
    first_layer: str = "analog",
    head: str = "analog",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """ECMT as its published implementation runs it: the 99 % quantile is the smallest of 8 levels; softmax output
    0.0125 for both signs; input of a ViT's second MLP layer 0.25 and 0.08; no neuron before the head.

    Source: released code of arXiv 2502.21193. Differences: quantiles are taken over all calibration samples together,
    not averaged over batches of 64 (which would depend on the batch size), and never over evaluation data. The fc2
    constants are given by module name; pass fc2=None for models whose published setting calibrates it (EVA).
    """
    kinds = {} if softmax is None else {SiteKind.SOFTMAX: SiteChoice(threshold=Threshold(softmax, softmax))}
    patterns = {} if fc2 is None else {"*fc2:input": SiteChoice(threshold=Threshold(*fc2))}
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    return Recipe("ecmt-code", PublishedMultiThreshold(levels), Percentile(percentile), policy, kinds, patterns, None)


def differential(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    cutoff: float = 0.5,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Differential coding: spikes carry corrections of a running estimate, so the error shrinks by a factor a step.

    Source: DCGS, arXiv 2503.00301, in running-estimate form. Differences: levels are powers of two below the largest
    activation magnitude, the same for both signs (overshoots must be taken back), and not the fixed point of the paper.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    return Recipe("differential", Differential(levels, cutoff), _rule(rule, percentile, True), policy)


def cascade(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    cutoff: float = 0.5,
    pulses: int = 6,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Residual cascade: a neuron fires several times within a step, each time at what is left; one step is enough.

    Source: harmony multi-threshold neurons (AAAI 2026). Differences: one signed neuron, the nearest power of two of
    either sign first, up to `pulses` firings; the range is the largest magnitude; products in two terms.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, rule = Differential(levels, cutoff, pulses), _rule(rule, percentile, True)
    return Recipe("cascade", neuron, rule, policy, product_terms=2, steps=1)


def balanced(
    *,
    divergence: float = 0.0005,
    energy: float | None = None,
    granularity: str = "neuron",
    cutoff: float = 0.75,
    pulses: int = 6,
    steps: int = 1,
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Ours: the cascade with thresholds and levels of all sites balanced: a given error for the fewest operations.

    `divergence` is the KL divergence from the source's prediction, in nats, that conversion may cause; or `energy` the
    share of the source's energy (the paper's account) it may spend. See `observers.Balanced`. The cutoff of 3/4 leaves
    unsaid what a spike would shrink by less than a factor of 3: 5 % fewer spikes at the same divergence.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    neuron, rule = Differential(8, cutoff, pulses), Balanced(divergence, energy, granularity)
    return Recipe("balanced", neuron, rule, policy, product_terms=2, steps=steps)


def qcfs(
    *,
    percentile: float = 0.999,
    rule: str = "percentile",
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Integrate-and-fire neurons that start half charged, as a network trained with the QCFS activation is run.

    A potential of theta/2 at the start and a threshold of theta is a tracking quantiser that fires at theta/2, so the
    neuron is the multi-threshold one with one level; on a constant input it gives, as in the paper's theorem,
    M_out(T) = theta/T clip(floor(T x / theta + 1/2), 0, T).
    Source: Bu et al., ICLR 2022, arXiv 2303.04347. Differences: the neuron reads the activation (behind ReLU), not the
    pre-activation; where an activation has both signs, so has the neuron; theta is a percentile, not trained.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    return Recipe("qcfs", MultiThreshold(1, 0.5), _rule(rule, percentile, False), policy)


def few_spikes(
    *,
    levels: int = 8,
    percentile: float = 1.0,
    rule: str = "percentile",
    first_layer: str = "analog",
    head: str = "spiking",
    analog: tuple[str, ...] = (),
    allow_unknown: bool = False,
) -> Recipe:
    """Few-spikes (phase) code, the field's binary-weighted reference: K digits within one step, about K/2 spikes.

    Source: Stoeckl and Maass 2021; LAS, arXiv 2505.09659. Differences: base 2 throughout, one bank per site (no outlier
    bank), nonlinear operators stay exact.
    """
    policy = Policy(first_layer=first_layer, head=head, analog=analog, allow_unknown=allow_unknown)
    rule = _rule(rule, percentile, True)
    return Recipe("few-spikes", FewSpikes(levels), rule, policy, product_terms=2, steps=1)


RECIPES: dict[str, Callable[..., Recipe]] = {
    "ecmt": ecmt,
    "ecmt-code": ecmt_code,
    "differential": differential,
    "cascade": cascade,
    "balanced": balanced,
    "qcfs": qcfs,
    "few-spikes": few_spikes,
}


def recipe_named(name: str, **options: Any) -> Recipe:
    """The recipe of that name with options changed.

    Raises: ConfigError, with suggestions, for a name or option there is not, and for a value the option does not take.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(f"no recipe named {name!r}; {hint}known recipes: {', '.join(RECIPES)}")
    check_arguments(RECIPES[name], options, f"recipe {name}")
    return RECIPES[name](**options)
