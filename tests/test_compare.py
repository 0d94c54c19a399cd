"""Recipes compared: the same samples for all, the numbers of single evaluations, and a row for what does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import transpike
from transpike import RECIPES, RecipeComparison, SiteChoice, _compare
from transpike._compare import Misfit, convert_each, evaluate_each
from transpike._evaluate import evaluate
from transpike.cli import main
from transpike.cli.options import chosen_recipes
from transpike.errors import ConfigError, DataError, PlanError
from transpike.report.comparison import comparison_document, comparison_tables, write_comparison
from transpike.zoo.digits import load_digits, load_model

STEPS = (1, 3)


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor | None


def inputs(split: str, size: int) -> torch.Tensor:
    return torch.from_numpy(load_digits(split)[0][:size]).float().unsqueeze(1) / 16


def batches(*, labelled: bool = True) -> list[Batch]:
    answers = torch.from_numpy(load_digits("test")[1][:40])
    pairs = zip(inputs("test", 40).split(16), answers.split(16), strict=True)
    return [Batch(x, y if labelled else None) for x, y in pairs]


def calibration() -> list[torch.Tensor]:
    return list(inputs("train", 32).split(16))


MISFIT = replace(RECIPES["ecmt"](), patterns={"nowhere:input": SiteChoice(levels=3)})


@pytest.fixture(scope="module")
def compared() -> RecipeComparison:
    recipes = {"a": RECIPES["ecmt"](), "code": RECIPES["ecmt-code"](), "none": MISFIT}
    return transpike.compare(load_model(), calibration(), batches(), recipes, steps=(3, 1))


def test_the_numbers_are_those_of_single_evaluations(compared: RecipeComparison) -> None:
    assert compared.steps == STEPS and [outcome.label for outcome in compared.outcomes] == ["a", "code", "none"]
    for name, outcome in zip(("ecmt", "ecmt-code"), compared.outcomes, strict=False):
        network = transpike.convert(load_model(), calibration(), name)
        alone = evaluate(network, batches(), steps=3)
        together, sheet = outcome.evaluation, network.energy_sheet(alone.tally)
        assert together is not None and outcome.sheet is not None
        assert together.score.right.tolist() == alone.score.right.tolist()
        assert together.score.same.tolist() == alone.score.same.tolist()
        assert together.tally.to_json() == alone.tally.to_json()
        assert outcome.sheet.to_json() == sheet.to_json()


def test_one_table_with_every_number(compared: RecipeComparison) -> None:
    main_table, misfits = comparison_tables(compared)
    assert [row[:2] for row in main_table.rows] == [("a", "1"), ("a", "3"), ("code", "1"), ("code", "3"), ("none", "-")]
    row = dict(zip(main_table.columns, main_table.rows[1], strict=True))
    first = compared.outcomes[0]
    assert first.evaluation is not None and first.sheet is not None
    assert row["spikes/neuron"] == f"{first.evaluation.tally.spikes_per_neuron().sum():.2f}"
    assert row["spikes/synapse"] == f"{first.evaluation.energy.spikes_per_synapse[2]:.2f}"
    assert row["paper"] == f"{first.evaluation.energy.ratio[2]:.3f}"
    assert row["memory"] == f"{first.sheet.comparison('FP32', 'with memory').ratio[2]:.3f}"
    assert misfits.rows == (("none", compared.outcomes[2].error),) and "'nowhere:input' matches no site" in str(misfits)


def test_intervals_are_wilsons(compared: RecipeComparison) -> None:
    entry = comparison_document(compared)["recipes"][1]["points"][0]
    p, n, z = entry["accuracy"], 40, 1.96
    middle, spread = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle + sign * spread) / (1 + z * z / n) for sign in (-1, 1)]
    assert entry["accuracy_interval"] == pytest.approx(expected)


def test_document_and_picture(compared: RecipeComparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    document = comparison_document(compared, seed=3)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert [len(entry["points"]) for entry in document["recipes"]] == [2, 2, 0]
    assert "nowhere:input" in document["recipes"][2]["error"] and document["recipes"][0]["error"] is None
    assert transpike.Recipe.from_json(document["recipes"][2]["recipe"]) == MISFIT
    written = write_comparison(tmp_path, document)
    assert [path.name for path in written] == ["comparison.json", "comparison.png"]
    assert written[1].read_bytes()[:4] == b"\x89PNG" and 20_000 < written[1].stat().st_size < 400_000


def test_without_labels_there_is_agreement_only(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    found = transpike.compare(load_model(), calibration(), batches(labelled=False), ["ecmt"], steps=[1])
    assert "accuracy %" not in comparison_tables(found)[0].columns
    document = comparison_document(found)
    assert document["source"]["accuracy"] is None and document["recipes"][0]["points"][0]["accuracy"] is None
    assert write_comparison(tmp_path, document)[1].stat().st_size > 20_000


def test_capture_calibration_and_source_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(("capture", "observe", "source"), 0)

    def counting(name: str, function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*args, **options)

        return counted

    for name in ("capture", "observe"):
        monkeypatch.setattr(_compare, name, counting(name, getattr(_compare, name)))
    monkeypatch.setattr("transpike._model.SpikingModel.source", counting("source", transpike.SpikingModel.source))
    recipes = {"ecmt": RECIPES["ecmt"](), "levels": RECIPES["ecmt"](levels=4), "code": RECIPES["ecmt-code"]()}
    told: list[int] = []
    networks = convert_each(load_model(), iter(calibration()), recipes, progress=told.append)
    evaluate_each(networks, batches(), steps=[1])
    assert counts == {"capture": 1, "observe": 2, "source": 3}  # two placement policies; three batches
    assert list(dict.fromkeys(told)) == [0, 16, 32, 48, 64]


def test_a_recipe_that_fails_on_the_way_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = convert_each(load_model(), calibration(), ["ecmt", "differential"])
    seen: list[tuple[str, str]] = []

    def broken(*args: Any, **options: Any) -> None:
        raise DataError("site x received NaN")

    monkeypatch.setattr(networks["ecmt"], "simulate", broken)
    found = evaluate_each(
        networks, batches(), steps=[2], on_failed=lambda label, error: seen.append((label, str(error)))
    )
    assert seen == [("ecmt", "site x received NaN")]
    assert [outcome.error for outcome in found.outcomes] == ["site x received NaN", ""]
    assert [outcome.label for outcome in found.fitting] == ["differential"] and found.score.samples == 40
    monkeypatch.setattr(networks["differential"], "simulate", broken)
    with pytest.raises(DataError, match="site x received NaN"):
        evaluate_each(networks, batches(), steps=[2])


def test_a_recipe_whose_calibration_fails_leaves_the_others() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).eval()
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    networks = convert_each(model, iter(x.split(4)), ["ecmt", "balanced", "differential"])
    misfit = networks["balanced"]
    assert isinstance(misfit, Misfit) and "first output holds class scores" in str(misfit.error)
    for name in ("ecmt", "differential"):
        assert networks[name].thresholds == transpike.convert(model, x.split(4), name).thresholds


def test_when_none_fits_each_reason_is_said() -> None:
    other = replace(MISFIT, patterns={"elsewhere:input": SiteChoice(levels=3)})
    with pytest.raises(PlanError, match=r"no recipe fits this model \(one: .*nowhere.*; two: .*elsewhere"):
        convert_each(load_model(), calibration(), {"one": MISFIT, "two": other})


@pytest.mark.parametrize(
    ("recipes", "steps", "said"),
    [
        ([], (1,), "no recipe"),
        (["ecmt", "ecmt"], (1,), "two recipes are called 'ecmt'"),
        (["ecmd"], (1,), "did you mean ecmt"),
        ([3], (1,), "a name or a Recipe, not int"),
        (["ecmt"], (), "at least 1"),
        (["ecmt"], (2, 0), "not 0"),
    ],
)
def test_misuse(recipes: Any, steps: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        transpike.compare(load_model(), calibration(), batches(), recipes, steps=steps)


def test_recipes_with_settings_as_the_command_line_takes_them() -> None:
    found = chosen_recipes('ecmt:levels=10:symmetric=true, ecmt-code:fc2=[0.5,0.25]:analog=["a,b","c:d"]')
    first, second = found.values()
    assert list(found) == ["ecmt:levels=10:symmetric=true", 'ecmt-code:fc2=[0.5,0.25]:analog=["a,b","c:d"]']
    assert first == RECIPES["ecmt"](levels=10, symmetric=True)
    assert second == RECIPES["ecmt-code"](fc2=(0.5, 0.25), analog=("a,b", "c:d"))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text(json.dumps(MISFIT.to_json()))
    monkeypatch.setattr("transpike.report.comparison.versions", lambda device: {"device": str(device)})
    line = "compare digits --data digits --limit 40 --steps 2,1 --json r/c.json --report out --device cpu:0 --recipes "
    assert main((line + "ecmt,differential:levels=6,bad.json").split()) == 0
    out, err = capsys.readouterr()
    assert "bad.json does not fit: site pattern 'nowhere:input' matches no site" in err
    assert "differential:levels=6" in out and "Recipes that do not fit" in out
    document = json.loads(Path("r/c.json").read_text())
    assert document["versions"] == {"device": "cpu:0"}
    assert json.loads(Path("out/comparison.json").read_text()) == document and Path("out/comparison.png").is_file()
    used, kept = document["calibration"]["data"]["indices"], document["data"]["indices"]
    assert not set(used) & set(kept) and len(used) == len(kept) == 20 == document["samples"]
    line = "eval digits --data digits --limit 40 --steps 2 --recipe differential --levels 6 --json e.json"
    assert main(line.split()) == 0
    alone = json.loads(Path("e.json").read_text())
    points = document["recipes"][1]["points"]
    assert [point["accuracy"] for point in points] == alone["accuracy"]
    assert [point["energy"]["paper"] for point in points] == pytest.approx(alone["energy"]["ratio"], rel=1e-12)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--recipes bad.json", "'nowhere:input' matches no site"),
        ("--recipes ecmt,,differential", "--recipes takes names"),
        ("--recipes ecmt,ecmt", "names ecmt twice"),
        ("--recipes ecmt:levels", "KEY=VALUE"),
        ("--recipes ecmt:nonsense=1", "nonsense"),
        ("--recipes bad.json:levels=3", "a recipe file decides everything"),
        ("--steps 1,x", "--steps takes whole numbers"),
        ("--steps 0", "--steps takes whole numbers"),
        ("--mode sideways", "--mode must be one of"),
        ("--report bad.json", "it is a file"),
    ],
)
def test_bad_options_get_one_sentence(
    more: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text(json.dumps(MISFIT.to_json()))
    assert main(f"compare digits --data digits --limit 10 {more}".split()) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("error: ") and said in last and "Traceback" not in err
