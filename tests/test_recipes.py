"""Recipes as values: they freeze, serialise, and refuse what makes no sense."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from transpike import RECIPES, Policy, Recipe, Site, SiteChoice, SiteKind, Threshold, TranspikeError
from transpike.errors import ConfigError
from transpike.neurons import NEURONS, MultiThreshold
from transpike.observers import Balanced, FixedPoint, Maximum, MinimumError, Percentile
from transpike.recipes import recipe_named

# One option of each recipe changed at a time: (recipe, options, how to see that it arrived).
OPTIONS: list[tuple[str, dict[str, Any], Any]] = [
    ("ecmt", {"levels": 5}, lambda r: r.neuron.levels == 5),
    ("ecmt", {"percentile": 0.999}, lambda r: r.range.fraction == 0.999),
    ("ecmt", {"symmetric": True}, lambda r: r.range.symmetric is True),
    ("ecmt", {"cutoff": 0.5}, lambda r: r.neuron.cutoff == 0.5),
    ("ecmt-code", {"levels": 3}, lambda r: r.neuron.levels == 3),
    ("ecmt-code", {"percentile": 0.9}, lambda r: r.range.fraction == 0.9),
    ("ecmt-code", {"softmax": 0.5}, lambda r: r.kinds[SiteKind.SOFTMAX].threshold == Threshold(0.5, 0.5)),
    ("ecmt-code", {"softmax": None}, lambda r: not r.kinds),
    ("ecmt-code", {"fc2": (0.5, 0.125)}, lambda r: r.patterns["*fc2:input"].threshold == Threshold(0.5, 0.125)),
    ("ecmt-code", {"fc2": None}, lambda r: not r.patterns),
    ("balanced", {"correction": "bias"}, lambda r: r.correction == "bias"),
    *[(name, {"steps": 4}, lambda r: r.steps == 4) for name in ("ecmt", "differential", "qcfs", "balanced", "fas")],
]
# What range setting has to offer, for every recipe whose thresholds are set site by site and not by a publication.
RANGED = ("ecmt", "differential", "cascade", "qcfs", "few-spikes", "mbe", "parallel")
RANGES = [
    ({"rule": "maximum", "percentile": 0.9}, lambda r: r.range.fraction == 1.0),
    ({"rule": "percentile", "percentile": 0.9}, lambda r: r.range.fraction == 0.9),
    ({"rule": "mse", "granularity": "head"}, lambda r: r.range == MinimumError("head")),
    ({"rule": "fixed-point"}, lambda r: isinstance(r.range, FixedPoint)),
    ({"granularity": "channel"}, lambda r: r.range.granularity == "channel"),
    ({"sequential": True}, lambda r: r.sequential is True),
    ({"correction": "bias"}, lambda r: r.correction == "bias"),
]
SHARED = [
    ({"first_layer": "spiking"}, lambda r: r.policy.first_layer == "spiking"),
    ({"head": "analog"}, lambda r: r.policy.head == "analog"),
    ({"head": "spiking"}, lambda r: r.policy.head == "spiking"),
    ({"analog": ("*.proj", "head")}, lambda r: r.policy.analog == ("*.proj", "head")),
    ({"allow_unknown": True}, lambda r: r.policy.allow_unknown is True),
]

OVERRIDDEN = {
    "kinds": {SiteKind.SOFTMAX: SiteChoice(threshold=Threshold(0.5, 0.0)), SiteKind.CONV: SiteChoice(levels=3)},
    "patterns": {
        "a.*": SiteChoice(4, Maximum(1.5, symmetric=False)),
        "a.b:input": SiteChoice(range=Percentile(0.5, symmetric=True)),
    },
    "threshold_bits": 5,
    "steps": 3,
}


def site(name: str, kind: SiteKind = SiteKind.LINEAR) -> Site:
    return Site(name, kind, "node", (None, 4), 0, (("layer", 0),))


def through_json(recipe: Recipe) -> Recipe:
    return Recipe.from_json(json.loads(json.dumps(recipe.to_json(), allow_nan=False)))


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip(name: str) -> None:
    recipe = recipe_named(name)
    assert through_json(recipe) == recipe
    changed = dataclasses.replace(recipe, **OVERRIDDEN)
    assert through_json(changed) == changed
    assert through_json(changed) != recipe


@pytest.mark.parametrize("kind", NEURONS.values())
@pytest.mark.parametrize("rule", [Percentile(0.75, symmetric=True), Maximum(0.5, symmetric=False)], ids=str)
def test_round_trip_of_every_part(kind: Any, rule: Any) -> None:
    policy = Policy("spiking", "analog", "compensated", ("x.*",), allow_unknown=True)
    recipe = Recipe("mine", kind(levels=3), rule, policy, threshold_bits=None, steps=2)
    assert through_json(recipe) == recipe


@pytest.mark.parametrize(
    ("name", "options", "arrived"),
    OPTIONS + [(n, *case) for n in RECIPES for case in SHARED] + [(n, *case) for n in RANGED for case in RANGES],
    ids=lambda value: None if callable(value) else str(value),
)
def test_every_option_arrives_and_survives_json(name: str, options: dict[str, Any], arrived: Any) -> None:
    recipe = recipe_named(name, **options)
    assert arrived(recipe)
    assert through_json(recipe) == recipe
    assert through_json(recipe).policy == recipe.policy


def test_the_published_names_are_there() -> None:
    assert {"ecmt", "ecmt-code"} <= set(RECIPES)
    for name in RECIPES:
        recipe = recipe_named(name)
        assert recipe.name == name
        assert recipe.steps >= 1


@pytest.mark.parametrize(("wrong", "meant"), [("ecmt_code", "ecmt-code"), ("emct", "ecmt"), ("ECMT-code", "ecmt-code")])
def test_a_wrong_name_is_answered_with_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"no recipe named '{wrong}'; did you mean .*{meant}") as caught:
        recipe_named(wrong)
    assert all(name in str(caught.value) for name in RECIPES)


def test_a_name_far_from_all_still_lists_them() -> None:
    with pytest.raises(ConfigError, match="known recipes: ecmt"):
        recipe_named("zzz")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lvels": 3}, "lvels"),
        ({"levels": 0}, "levels"),
        ({"percentile": 99}, "percentile"),
        ({"cutoff": 2}, "cutoff"),
        ({"head": "maybe"}, "head"),
        ({"first_layer": None}, "first_layer"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe_named("ecmt", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"symmetric": 1}, "symmetric takes true or false, not 1"),
        ({"cutoff": "half"}, "cutoff takes a number, not 'half'"),
        ({"levels": 8.0}, "levels takes a whole number, not 8.0"),
        ({"head": None}, "head takes a text, not None"),
        ({"analog": "blocks.0"}, "analog takes a list of texts, not 'blocks.0'"),
        ({"analog": [1]}, r"analog takes a list of texts, not \[1\]"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe ecmt: {said}"):
        recipe_named("ecmt", **options)


def test_values_that_json_writes_differently_are_taken() -> None:
    assert recipe_named("ecmt", cutoff=1, analog=["a.*"]) == recipe_named("ecmt", cutoff=1.0, analog=("a.*",))
    assert recipe_named("ecmt-code", fc2=[1, 2], softmax=None) == recipe_named(
        "ecmt-code", fc2=(1.0, 2.0), softmax=None
    )


def test_analog_patterns_are_a_list() -> None:
    for wrong in ("blocks.0", (1,)):
        with pytest.raises(ConfigError, match="analog takes a list of module-name patterns"):
            Policy(analog=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["name", "neuron", "range", "steps", "policy", "threshold_bits", "kinds", "patterns"])
def test_a_recipe_is_frozen(field: str) -> None:
    recipe = recipe_named("ecmt")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(recipe, field, None)
    for part in (recipe.neuron, recipe.range, recipe.policy, SiteChoice()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)  # type: ignore[arg-type]


# --- choices ---------------------------------------------------------------------------------------------------------


def test_patterns_win_over_kinds_and_later_over_earlier() -> None:
    recipe = dataclasses.replace(
        recipe_named("ecmt"),
        kinds={SiteKind.LINEAR: SiteChoice(levels=2, range=Maximum())},
        patterns={"a.*": SiteChoice(levels=3), "a.b:*": SiteChoice(levels=4, threshold=Threshold(1.0, 2.0))},
    )
    assert recipe.choice(site("z", SiteKind.CONV)) == SiteChoice(8, recipe.range, None)
    assert recipe.choice(site("z")) == SiteChoice(2, Maximum(), None)
    assert recipe.choice(site("a.c:input")) == SiteChoice(3, Maximum(), None)
    assert recipe.choice(site("a.b:input")) == SiteChoice(4, Maximum(), Threshold(1.0, 2.0))
    assert recipe.neuron_for(site("a.b:input")) == MultiThreshold(4)
    reversed_patterns = dict(reversed(recipe.patterns.items()))
    assert dataclasses.replace(recipe, patterns=reversed_patterns).choice(site("a.b:input")).levels == 3


def test_patterns_are_case_sensitive_and_unused_ones_are_told() -> None:
    recipe = dataclasses.replace(
        recipe_named("ecmt"), patterns={"a.?": SiteChoice(4), "A.*": SiteChoice(3), "b": SiteChoice(5)}
    )
    sites = (site("a.x"), site("c"))
    assert recipe.choice(site("a.x")).levels == 4
    assert recipe.unused_patterns(sites) == ["A.*", "b"]


# --- files that are not recipes --------------------------------------------------------------------------------------


def broken(change: Any) -> Any:
    data = json.loads(json.dumps(dataclasses.replace(recipe_named("ecmt"), **OVERRIDDEN).to_json()))
    return change(data) or data


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("name") and None,
        lambda d: d.pop("neuron") and None,
        lambda d: d.pop("range") and None,
        lambda d: d["neuron"].update(type="izhikevich"),
        lambda d: d["neuron"].update(type=["multi-threshold"]),
        lambda d: d["neuron"].update(levels=99),
        lambda d: d["neuron"].update(levels="8"),
        lambda d: d["neuron"].update(voltage=1),
        lambda d: d["range"].update(type="median"),
        lambda d: d["range"].update(fraction=2),
        lambda d: d["range"].update(fraction="most"),
        lambda d: d.update(range=None),
        lambda d: d.update(neuron="multi-threshold"),
        lambda d: d["policy"].update(head="no"),
        lambda d: d["policy"].update(tail="analog"),
        lambda d: d.update(policy=None),
        lambda d: d.update(kinds={"dendrite": {}}),
        lambda d: d.update(kinds=[]),
        lambda d: d.update(patterns=None),
        lambda d: d.update(patterns={"a": None}),
        lambda d: d.update(patterns={"a": {"threshold": [1.0]}}),
        lambda d: d.update(patterns={"a": {"threshold": ["x", 1.0]}}),
        lambda d: d.update(patterns={"a": {"range": {"type": "nope"}}}),
        lambda d: d.update(steps="many"),
        lambda d: d.update(steps=None),
        lambda d: [d],
        lambda d: "ecmt",
        lambda d: 7,
    ],
)
def test_what_is_not_a_recipe_is_refused(change: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_json(broken(change))
    assert isinstance(caught.value, TranspikeError)
    assert re.search(r"\w", str(caught.value))
    assert "\n" not in str(caught.value)


def test_what_a_recipe_file_leaves_out_has_its_default() -> None:
    recipe = Recipe("mine", MultiThreshold(3), Maximum())
    shortest = {key: recipe.to_json()[key] for key in ("name", "neuron", "range")}
    assert Recipe.from_json(shortest) == recipe and recipe.threshold_bits == 8
    assert Recipe.from_json({**shortest, "threshold_bits": None}).threshold_bits is None


@pytest.mark.parametrize("outer", [Maximum(), Balanced(0.01)])
@pytest.mark.parametrize("where", ["kinds", "patterns"])
def test_balanced_under_a_kind_or_pattern_is_refused(outer: Any, where: str) -> None:
    inner = {"linear": {"range": {"type": "balanced", "divergence": 0.1}}}
    data = {**Recipe("mine", MultiThreshold(3), outer).to_json(), where: inner}
    with pytest.raises(ConfigError, match="rule balanced is for all sites together, not for linear; make it"):
        Recipe.from_json(data)
    data[where] = {"linear": {"range": {"type": "maximum"}}}  # the other way round it is as meant
    assert Recipe.from_json(data).range == outer


def test_the_planted_breaks_are_what_breaks() -> None:
    Recipe.from_json(broken(lambda d: None))
