"""Tuning: the search's parts against brute force, the whole on the embedded digits, stopping, going on, and misuse."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import transpike
from transpike import RECIPES, Recipe, Site, SiteChoice, SiteKind, Threshold, Tuned, tune
from transpike._convert import place_sites
from transpike._tune import Choice, Effect, Target, Trajectory
from transpike._tune.journal import Journal
from transpike._tune.judge import Judge, distance
from transpike._tune.path import path, ranked
from transpike._tune.search import front
from transpike._tune.space import Space, units_of
from transpike.calibration import observe
from transpike.cli import main
from transpike.errors import ConfigError
from transpike.neurons.kernel import WORTH_COMPILING, refusal
from transpike.observers import Histogram, Percentile
from transpike.report.tuning import choice_table, front_table, sensitivity_table, tuning_document
from transpike.zoo.digits import load_digits, load_model

OPTIONS: dict[str, Any] = {"max_drop": 10.0, "steps": (2, 1), "by": "role", "few": 16, "settings": 22}


def images(start: int, stop: int) -> list[torch.Tensor]:
    part = torch.from_numpy(load_digits("train")[0][start:stop]).float().unsqueeze(1) / 16
    return list(part.split(16))


def tuned_with(**changes: Any) -> Tuned:
    return tune(load_model(), images(0, 32), images(32, 80), **{**OPTIONS, **changes})


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    return tuned_with()


def site(name: str, kind: SiteKind = SiteKind.LINEAR) -> Site:
    return Site(name, kind, "node", (None, 4), 0, (("layer", 0),))


SITES = tuple(site(f"blocks.{i}.{part}:input") for i in range(3) for part in ("fc1", "fc2")) + (
    site("blocks.1.attn:softmax", SiteKind.SOFTMAX),
    site("odd[2]*:input"),
)


# --- the parts -------------------------------------------------------------------------------------------------------


def test_units() -> None:
    assert [unit.name for unit in units_of(SITES, "site")] == [one.name for one in SITES]
    roles = units_of(SITES, "role")
    names = ["blocks.#.fc1:input", "blocks.#.fc2:input", "blocks.#.attn:softmax", "odd[2]*:input"]
    assert [unit.name for unit in roles] == names and [len(unit.sites) for unit in roles] == [3, 3, 1, 1]
    with pytest.raises(ConfigError, match="by site or role, not by 'block'"):
        units_of(SITES, "block")


@pytest.mark.parametrize("by", ["site", "role"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_every_site_what_the_setting_says(name: str, by: str) -> None:
    """Against the base recipe's own choice, changed by hand; for many random settings, through JSON."""
    base = RECIPES[name]()
    space, chance = Space(base, units_of(SITES, by)), random.Random(0)
    cutoffs = [None, 0.5, 0.75] if space.has_cutoff else [None]
    scales = [-1, 0, 0, 2] if hasattr(base.range, "margin") else [0]  # the balanced rule has no range to scale
    changes = [-3, 0, 0, 1] if base.neuron.levels > 3 else [0, 1]
    for _ in range(20):
        setting = tuple(
            Choice(chance.choice(scales), chance.choice(changes), chance.choice(cutoffs)) for _ in space.units
        )
        recipe = space.recipe(setting, steps=3)
        recipe = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
        assert recipe.steps == 3 and recipe.policy == base.policy and not recipe.unused_patterns(SITES)
        for unit, choice in zip(space.units, setting, strict=True):
            for one in unit.sites:
                before, after = base.choice(one), recipe.choice(one)
                neuron = recipe.neuron_for(one)
                assert neuron.levels == before.levels + choice.levels
                if space.has_cutoff:
                    assert neuron.cutoff == (base.neuron.cutoff if choice.cutoff is None else choice.cutoff)
                factor = 2 ** (choice.scale / 2)
                if before.threshold is not None:
                    pair = (before.threshold.positive * factor, before.threshold.negative * factor)
                    assert after.threshold == Threshold(*pair)
                elif choice.scale == 0:
                    assert after.threshold is None and after.range == before.range
                else:
                    assert after.threshold is None and after.range.margin == before.range.margin * factor
                    assert after.range.fraction == before.range.fraction


def test_a_choice_for_all_alike_needs_no_pattern_and_one_for_a_role_one() -> None:
    space = Space(RECIPES["ecmt"](), units_of(SITES, "role"))
    everywhere = space.recipe(space.everywhere(Choice(2, -2, 0.5)))
    assert not everywhere.patterns and everywhere.neuron.levels == 6 and everywhere.range.margin == 2
    setting = (space.start[0], Choice(1), *space.start[2:])
    assert list(space.recipe(setting).patterns) == ["blocks.*.fc2:input"]


def test_neighbours_change_one_thing_within_limits() -> None:
    space = Space(RECIPES["ecmt"](levels=2), units_of(SITES, "site"))
    found = space.neighbours(space.units[0], Choice())
    assert found == (Choice(-2), Choice(-1), Choice(1), Choice(2), Choice(levels=2), Choice(cutoff=0.5))
    without = Space(RECIPES["ecmt-code"](), units_of(SITES, "site"))
    assert without.neighbours(without.units[0], Choice())[4:] == (Choice(levels=-2), Choice(levels=2))


def effects_of(chance: random.Random, units: int) -> list[Effect]:
    return [
        Effect(unit, Choice(scale), chance.uniform(-1, 2), 0.0, chance.uniform(-2, 1), 0.0)
        for unit in range(units)
        for scale in (-2, -1, 1, 2)
    ]


def total(setting: tuple[Choice, ...], effects: list[Effect]) -> tuple[float, float]:
    known = {(e.unit, e.choice): (e.error, e.energy) for e in effects}
    pairs = [known.get((unit, choice), (0.0, 0.0)) for unit, choice in enumerate(setting)]
    return sum(e for e, _ in pairs), sum(c for _, c in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_path_holds_the_best_of_every_trade(seed: int) -> None:
    """Brute force over all 125 settings: what minimises error + price x energy lies on the path, for any price."""
    effects = effects_of(random.Random(seed), 3)
    walked = path((Choice(),) * 3, effects)
    sums = [total(setting, effects) for setting in walked]
    assert sums == sorted(sums) and [c for _, c in sums] == sorted((c for _, c in sums), reverse=True)
    everything = itertools.product([Choice(scale) for scale in (-2, -1, 0, 1, 2)], repeat=3)
    every = {setting: total(setting, effects) for setting in everything}
    for price in (0.0, 0.1, 0.5, 1.0, 3.0, 100.0):
        best = min(error + price * energy for error, energy in every.values())
        assert min(error + price * energy for error, energy in sums) == pytest.approx(best)


def test_ranking_of_single_changes() -> None:
    center = (Choice(), Choice())
    effects = [
        Effect(0, Choice(1), 1.0, 0.0, -2.0, 0.0),
        Effect(0, Choice(2), 3.0, 0.0, -3.0, 0.0),
        Effect(1, Choice(1), -1.0, 0.0, 0.5, 0.0),
        Effect(1, Choice(-1), -0.1, 0.0, -0.5, 0.0),
    ]
    assert ranked(center, center, effects, saves=True) == [(1, Choice(-1)), (0, Choice(1)), (0, Choice(2))]
    assert ranked(center, center, effects, saves=False) == [(1, Choice(-1)), (1, Choice(1))]
    assert ranked((Choice(1), Choice()), center, effects, saves=True)[1:] == [(0, Choice(2))]


def trajectory(same: list[int], energy: list[float], error: list[float], samples: int = 100) -> Trajectory:
    return Trajectory(samples, tuple(error), tuple(same), tuple(energy), tuple(energy))


def test_target() -> None:
    found = trajectory([97, 99, 100], [0.1, 0.2, 0.3], [0.5, 0.2, 0.1])
    steps = (1, 2, 3)
    assert [Target(max_drop=drop).best_step(found, steps) for drop in (0, 0.5, 1, 3, 50)] == [3, 3, 2, 1, 1]
    assert [Target(max_energy=most).best_step(found, steps) for most in (0.1, 0.25, 9)] == [1, 2, 3]
    assert Target(max_energy=0.05).best_step(found, steps) == 1 and Target(max_energy=0.05).misses_by(found, 1) > 0
    assert Target(max_drop=1).misses_by(found, 1) > 0 == Target(max_drop=1).misses_by(found, 2)
    for wrong in ({}, {"max_drop": 1.0, "max_energy": 1.0}, {"max_drop": -1.0}, {"max_energy": 0.0}):
        with pytest.raises(ConfigError):
            Target(**wrong)
    with pytest.raises(ConfigError):
        Target(max_energy=float("nan"))


def test_front() -> None:
    one, two = (Choice(1),), (Choice(2),)
    judged = {one: trajectory([50, 90], [0.2, 0.4], [3, 1]), two: trajectory([60, 80], [0.1, 0.5], [3, 1])}
    assert front(judged, (1, 2)) == [(two, 1), (one, 2)]


def test_distance() -> None:
    source, outputs = torch.randn(5, 3), torch.randn(2, 5, 3)
    noise, signal = distance(source, outputs)
    centred = [value - value.mean(-1, keepdim=True) for value in (source, outputs)]
    assert torch.allclose(noise, (centred[1] - centred[0]).square().sum((1, 2)).double(), rtol=1e-4)
    assert torch.allclose(distance(source + 7, outputs - 3)[0], noise, rtol=1e-4)
    assert distance(source[:, :1], outputs[..., :1])[0] == pytest.approx(
        (outputs[..., 0] - source[:, 0]).square().sum(1).tolist(), rel=1e-4
    )
    assert torch.isfinite(distance(torch.full((1, 2), -torch.inf), torch.zeros(1, 1, 2))[0]).all() and signal > 0


def test_margin_and_cutoff_of_single_sites() -> None:
    histogram = Histogram()
    histogram.update(torch.tensor([-3.0, 1.0, 5.0]))
    for symmetric in (False, True):
        plain, wide = (Percentile(1.0, symmetric, margin).threshold(histogram) for margin in (1.0, 1.5))
        assert (wide.positive, wide.negative) == (1.5 * plain.positive, 1.5 * plain.negative)
    with pytest.raises(ConfigError, match="margin must be a positive number"):
        Percentile(margin=0.0)
    recipe = replace(RECIPES["ecmt-code"](), patterns={"blocks.0.*": SiteChoice(cutoff=0.5)})
    with pytest.raises(
        ConfigError, match="published-multi-threshold has no cutoff; drop it for site blocks.0.fc1:input"
    ):
        recipe.neuron_for(SITES[0])
    assert Recipe.from_json(recipe.to_json()) == recipe and "cutoff 0.5" in recipe.lines()[-1]


# --- the journal -----------------------------------------------------------------------------------------------------


def test_journal_keeps_what_is_whole_and_drops_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "j.jsonl"
    journal = Journal(file)
    journal.put("a", {"value": 0.1})
    journal.put("b", {"value": [1, 2]})
    whole = file.read_bytes()
    for torn in (b'{"key": "c", "val', b'{"ke', b"{"):
        file.write_bytes(whole + torn)
        again = Journal(file)
        assert again.records == journal.records and file.read_bytes() == whole
    again.put("c", {"value": None})
    assert list(Journal(file).records) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["notes of mine\n", "notes of mine", '{"key": 3}\n', '{"other": 1}', "[]\n", "\n"])
def test_a_file_that_is_no_journal_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text(text)
    with pytest.raises(ConfigError, match="line 1, is no line of a journal"):
        Journal(file)
    assert file.read_text() == text


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_target_is_met_on_the_judging_samples_by_an_independent_measure(tuned: Tuned) -> None:
    assert tuned.reached and tuned.steps in (1, 2) and len(tuned.judged) <= 22
    recipe = Recipe.from_json(json.loads(json.dumps(tuned.recipe.to_json())))
    assert recipe == tuned.recipe and recipe.steps == tuned.steps
    network = transpike.convert(load_model(), images(0, 32), recipe)
    inputs = torch.cat(images(32, 80))
    run = network.simulate(inputs, tuned.steps)
    same = (run.outputs[-1].argmax(-1) == network.source(inputs).argmax(-1)).sum()
    assert int(same) == tuned.found.same[tuned.steps - 1] >= 0.9 * 48
    assert network.energy(run).ratio[-1] == pytest.approx(tuned.found.energy[tuned.steps - 1], rel=1e-6)
    assert run.spikes.spikes_per_neuron().sum() == pytest.approx(tuned.found.spikes[tuned.steps - 1], rel=1e-6)


def test_the_choice_is_the_cheapest_judged_and_cheaper_than_the_untuned(tuned: Tuned) -> None:
    def cheapest(settings: Any) -> float:
        points = [(tuned.judged[s].same[t - 1], tuned.judged[s].energy[t - 1]) for s in settings for t in (1, 2)]
        return min(energy for same, energy in points if same >= 0.9 * 48)

    chosen = tuned.found.energy[tuned.steps - 1]
    assert chosen == cheapest(tuned.judged) < 0.95 * cheapest([tuned.space.start])


def test_sensitivities_are_what_the_changes_do(tuned: Tuned) -> None:
    per_unit = [sum(e.unit == unit for e in tuned.effects) for unit in range(len(tuned.space.units))]
    assert min(per_unit) >= 5
    effect = max(tuned.effects, key=lambda e: abs(e.spikes))
    setting = (*tuned.center[: effect.unit], effect.choice, *tuned.center[effect.unit + 1 :])
    inputs, spikes = torch.cat(images(32, 48)), []
    for one in (tuned.center, setting):
        network = transpike.convert(load_model(), images(0, 32), tuned.space.recipe(one))
        spikes.append(network.simulate(inputs, tuned.sensitivity_steps).spikes.spikes_per_neuron().sum())
    assert effect.spikes == pytest.approx(spikes[1] - spikes[0], rel=1e-5) and effect.spikes != 0


def test_tables_and_document(tuned: Tuned) -> None:
    table = sensitivity_table(tuned)
    assert [row[0] for row in table.rows] == [unit.name for unit in tuned.space.units]
    assert {"threshold x0.707", "threshold x2", "levels +2"} <= set(table.columns)
    marks = [row[0] for row in front_table(tuned).rows]
    assert marks.count("chosen") == marks.count("untuned") == 1
    energies = [float(row[6]) for row in front_table(tuned).rows]
    assert energies == sorted(energies)
    chosen = {name: row[0] for row in choice_table(tuned).rows for name in row[2].split(", ")}
    assert chosen == {u.name: str(c) for u, c in zip(tuned.space.units, tuned.setting, strict=True)}
    document = tuning_document(tuned)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["chosen"]["energy"] == tuned.found.energy[tuned.steps - 1]
    assert len(document["sensitivity"]["effects"]) == len(tuned.effects)


def test_the_choice_names_a_few_sites_and_counts_the_rest(tuned: Tuned) -> None:
    space = Space(RECIPES["ecmt"](), units_of([site(f"layer{i}.fc:input") for i in range(9)], "site"))
    setting = (Choice(levels=2), *(Choice(),) * 8)
    table = choice_table(replace(tuned, space=space, setting=setting, steps=3))
    assert table.title == "Chosen: T = 3"
    named = ", ".join(f"layer{i}.fc:input" for i in range(1, 7))
    assert table.rows == (("as it is", "8", f"{named} and 2 more"), ("levels +2", "1", "layer0.fc:input"))


def test_stopped_and_resumed_is_as_undisturbed(tuned: Tuned, tmp_path: Path) -> None:
    file, told = tmp_path / "j.jsonl", []

    def stop(stage: str, done: int, of: int) -> None:
        told.append(stage)
        if stage.startswith("sensitivity") and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned_with(journal=file, progress=stop)
    before = len(file.read_text().splitlines())
    with file.open("a") as text:
        text.write('{"key": "0123')
    again = tuned_with(journal=file)
    assert (again.recipe, again.steps, again.judged, again.effects) == (
        tuned.recipe, tuned.steps, tuned.judged, tuned.effects,
    )  # fmt: skip
    assert again.measured == tuned.measured - before and before > 10 and again.resumed == before
    last = tuned_with(journal=file)
    assert (last.measured, last.resumed) == (0, tuned.measured) and tuned.resumed == 0


def test_a_journal_of_other_samples_or_weights_is_not_used(tmp_path: Path) -> None:
    model, recipe, journal = load_model(), RECIPES["ecmt"](), Journal(tmp_path / "j")
    sited = place_sites(model, transpike.capture(model, images(0, 2)[0]), recipe, images(0, 2)[0])

    def judge(ranges: int = 0, judged: int = 32) -> Judge:
        seen = observe(sited.captured, sited.graph, sited.plan, [recipe], images(ranges, ranges + 16))
        return Judge(sited, seen, images(judged, judged + 16), recipe, journal)

    first = judge()(recipe, steps=1)
    for other, runs in ((judge(), 0), (judge(judged=33), 1), (judge(ranges=1), 1)):
        other(recipe, steps=1)
        assert other.run == runs
    again = judge()
    for changed, steps in ((recipe, 2), (RECIPES["ecmt"](levels=5), 1)):
        again(changed, steps=steps)
    assert again.run == 2 and judge()(recipe, steps=1) == first
    with torch.no_grad():
        model.head.bias += 0.01
    other = judge()
    other(recipe, steps=1)
    assert other.run == 1


@pytest.mark.skipif(bool(refusal(torch.device("cpu"))), reason="kernels cannot be compiled here")
def test_many_passes_are_worth_compiling_and_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "products round otherwise there")
    model, recipe, image = load_model(), RECIPES["cascade"](), images(0, 16)
    sited = place_sites(model, transpike.capture(model, image[0]), recipe, image[0])
    seen = observe(sited.captured, sited.graph, sited.plan, [recipe], image)
    neurons = sum(one.neurons for one in sited.plan.sites)
    passes = -(-WORTH_COMPILING // (16 * neurons))
    few, many = (Judge(sited, seen, image, recipe, Journal(), count) for count in (passes - 1, passes))
    assert (few.kernel, many.kernel) == ("eager (too little work to compile)", "compiled")
    assert few(recipe, steps=2) == many(recipe, steps=2)


def test_the_closest_outputs_for_an_energy() -> None:
    most = 0.2
    found = tuned_with(max_drop=None, max_energy=most, recipe="differential", settings=20)
    points = [(f.energy[t - 1], f.error[t - 1]) for f in found.judged.values() for t in (1, 2)]
    chosen = found.found.energy[found.steps - 1], found.found.error[found.steps - 1]
    assert found.reached and chosen[0] <= most
    assert chosen[1] == min(error for energy, error in points if energy <= most)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_energy": 0.3}, "one target"),
        ({"max_drop": None}, "one target"),
        ({"steps": ()}, "at least one"),
        ({"steps": (0,)}, "at least 1"),
        ({"few": 0}, "few must be"),
        ({"settings": True}, "settings must be"),
        ({"by": "layer"}, "by site or role"),
        ({"recipe": "ecmd"}, "did you mean ecmt"),
        ({"recipe": "balanced"}, "no site to tune; choose its divergence or energy"),
    ],
)
def test_misuse(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tuned_with(**change)


# --- the command -----------------------------------------------------------------------------------------------------

FAST = "tune digits --data digits --samples 64 --by role --steps 1,2 --few 16 --settings 3 --batch-size 32"


def test_the_command_writes_a_recipe_that_eval_and_convert_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transpike.report.tuning.versions", lambda device: {"device": str(device)})
    assert main(f"{FAST} --max-drop 20 --out my.json --json all.json --journal j --device cpu:0".split()) == 0
    out, err = capsys.readouterr()
    assert "Sensitivity of single sites" in out and "chosen" in out and "target reached: T = " in err
    recipe, everything = json.loads(Path("my.json").read_text()), json.loads(Path("all.json").read_text())
    assert everything["versions"] == {"device": "cpu:0"}
    assert Recipe.from_json(recipe) == Recipe.from_json(everything["recipe"])
    assert everything["reached"] and len(recipe["tuned"]["indices"]) == 64
    for line in (
        "convert digits --calibration digits --samples 32 --recipe my.json --out net --quiet",
        "eval digits --data digits --split train --limit 1200 --recipe my.json --json e.json",
    ):
        assert main(line.split()) == 0
    assert "samples of digits tuned the recipe and are left out" in capsys.readouterr().err
    report = json.loads(Path("e.json").read_text())
    assert report["recipe"] == everything["recipe"] and report["steps"] == everything["steps"] == recipe["steps"] < 8
    assert not set(report["data"]["indices"]) & set(recipe["tuned"]["indices"])


def test_the_help_says_what_exit_code_1_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Exit code 1 when the target is not reached" in text and "--max-energy" in text and "--journal" in text


def test_an_impossible_target_gives_the_best_found_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(f"{FAST} --max-energy 0.001 --out my.json".split()) == 1
    out, err = capsys.readouterr()
    said = err.splitlines()[-1]
    assert said.startswith("target not reached (energy of at most 0.001 of the source's); the best found: T = 1")
    assert "chosen" in out and json.loads(Path("my.json").read_text())["tuned"]["reached"] is False


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--max-drop 1 --max-energy 1", "one target"),
        ("--max-drop 200", "from 0 to 100 percentage points"),
        ("--max-energy -1", "positive ratio"),
        ("--max-energy nan", "positive ratio"),
        ("--steps two", "--steps takes whole numbers"),
        ("--by block", "by site or role"),
        ("--few 0", "few must be"),
        ("--settings 0", "settings must be"),
        ("--samples 1", "1 sample"),
        ("--recipe nothing.json", "cannot read nothing.json"),
        ("--journal notes", "is no line of a journal"),
        ("--journal .", "it is a folder"),
        ("--out notes/x.json", "notes is a file"),
    ],
)
def test_bad_options_get_one_sentence(
    more: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("mine\n")
    assert main(f"tune digits --data digits {more}".split()) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("error: ") and said in last and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
