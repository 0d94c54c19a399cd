"""The network in spikes equals the fast simulator: every neuron, every family, every step, every spike."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

import transpike
from families import FAMILIES, Family
from test_families import batch, no_fast_path  # noqa: F401
from transpike._drift import drift, widen
from transpike._execute import run_body, run_prefix
from transpike._literal import BrokenPromise, Literal
from transpike.recipes import RECIPES
from transpike.types import Threshold

STEPS = 3


# A CNN, two ViTs and two language models have every recipe; the other families take turns with these three, one for
# every code and neuron that fires once a step. (`benchmarks/equality.py` has every family with every one.)
IN_TURN = ("ecmt", "ecmt-code", "differential")
ALL = ("timm_resnet18", "timm_deit3_small_patch16_224", "timm_swin_tiny_patch4_window7_224", "hf_gpt2", "hf_llama")
CASES = [(f, r) for turn, f in enumerate(FAMILIES) for r in (RECIPES if f.name in ALL else IN_TURN[turn % 3 :][:1])]


@pytest.mark.parametrize(("family", "recipe"), CASES, ids=lambda case: getattr(case, "name", case))
def test_literal_equals_fast(family: Family, recipe: str) -> None:
    inputs = batch(family, 2)
    # Firings so few that later steps have work left; not a channel for each of 16^2.
    few = {"cascade": {"pulses": 2}, "mbe": {"levels": 3}, "parallel": {"levels": 2}}
    chosen = RECIPES[recipe](**few.get(recipe, {}))
    snn = widen(transpike.convert(family.build(), [inputs], chosen, batch_dim=family.batch_dim))
    without_ties(snn)
    found, _ = drift(snn, inputs, steps=STEPS, check=True)
    assert max(found.outputs) <= 1e-10 * max(found.scale, 1.0)
    assert found.spikes == (0, 0, 0) and found.emitted[0] > 0
    assert recipe in ("balanced", "few-spikes", "mbe", "parallel") or min(found.emitted) > 0


class Adding(nn.Module):
    """Operators that multiply and add: a product plus a constant, a product and a layer plus a signal, and plus what
    they multiply; a product with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6)
        self.constant, self.weight = nn.Parameter(torch.randn(1, 4, 4)), nn.Parameter(torch.randn(6, 6))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x).relu(), self.two(x).tanh()
        scores = torch.baddbmm(self.constant, a, b.transpose(1, 2), beta=0.5, alpha=0.25)
        scores = torch.baddbmm(scores, b, a.transpose(1, 2), alpha=0.125)
        h = torch.baddbmm(self.last(b), scores, b) * 0.25
        h = torch.addmm(h.flatten(0, 1) + 1, a.flatten(0, 1), self.weight)
        h = torch.addmm(h, h, self.weight, beta=0.5, alpha=0.1).unflatten(0, (-1, 4))
        return torch.nn.functional.linear(h, b[0], self.bias)


@pytest.mark.parametrize("recipe", ["ecmt", "differential", "balanced"])
def test_what_a_product_or_layer_adds_goes_through(recipe: str) -> None:
    torch.manual_seed(0)
    model, x = Adding().double().eval(), torch.randn(1, 4, 5, dtype=torch.float64)
    snn = transpike.convert(model, [x], recipe)
    without_ties(snn)
    found, _ = drift(snn, x, steps=4, check=True)
    assert max(found.outputs) <= 1e-10 * max(found.scale, 1.0)
    assert found.spikes == (0, 0, 0, 0) and found.emitted[0] > 0
    identity = run_body(snn.program, run_prefix(snn.program, (x,)), lambda marker, value: value)
    assert torch.allclose(identity, model(x))


def test_a_neuron_is_read_by_the_factor_alone() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(4, 4), nn.Parameter(torch.eye(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return torch.addmm(h, h, self.weight)

    model, x = Sum().eval(), torch.randn(3, 4)
    snn = transpike.convert(model, [x], "ecmt")
    deaf = run_body(snn.program, run_prefix(snn.program, (x,)), lambda marker, value: value * 0)
    assert len(snn.plan.sites) == 1 and torch.equal(deaf, model.first(x))  # what is added is not in spikes


def without_ties(snn: transpike.SpikingModel) -> None:
    """Thresholds that are exact maxima, or have 8 bits, put membranes exactly between two levels, where rounding
    decides; random ones never do."""
    random = Random(0)
    moved = {
        name: Threshold(t.positive * random.uniform(0.9, 1), t.negative * random.uniform(0.9, 1))
        for name, t in snn.thresholds.items()
    }
    snn.calibration = transpike.Calibration(moved, 0)


def digits(recipe: str = "ecmt") -> tuple[transpike.SpikingModel, torch.Tensor]:
    from transpike.zoo.digits import load_digits, load_model

    images = torch.from_numpy(load_digits("test")[0][:6]).double().unsqueeze(1) / 16
    return transpike.convert(load_model().double(), [images], recipe), images


def test_the_comparison_sees_another_network() -> None:
    """One weight or one level changed in between shows in outputs and spikes."""
    snn, images = digits()
    without_ties(snn)
    _, state = drift(snn, images, steps=1)
    first = next(iter(snn.thresholds))
    moved = {**snn.thresholds, first: Threshold(1.3 * snn.thresholds[first].positive, 0.1)}
    snn.calibration = transpike.Calibration(moved, 0)
    found, _ = drift(snn, images, steps=2, state=state)
    assert (found.first, len(found.outputs)) == (2, 1)
    assert found.outputs[0] > 1e-3 and found.spikes[0] > 0


def test_run_counts_what_the_simulator_counts() -> None:
    snn, images = digits()
    without_ties(snn)
    run, _ = Literal(snn).run(images, steps=2)
    fast = snn.simulate(images, 2).spikes
    assert {site: counts.tolist() for site, counts in run.spikes.spikes.items()} == {
        site: counts.tolist() for site, counts in fast.spikes.items()
    }
    assert (run.spikes.neurons, run.spikes.samples) == (fast.neurons, fast.samples)


class Chooses(torch.nn.Module):
    """A ReLU spelled out: which values stay changes over time with the signal."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.one, self.two, self.three = torch.nn.Linear(4, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.two(self.one(x).relu())
        return self.three(torch.where(h < 0, 0.0, h) if self.how == "where" else h.masked_fill(h < 0, 0.0))


@pytest.mark.parametrize("how", ["where", "masked_fill"])
@pytest.mark.parametrize("recipe", ["ecmt", "differential"])
def test_choices_that_depend_on_a_signal(how: str, recipe: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.float64)
    snn = transpike.convert(Chooses(how).double().eval(), [x], RECIPES[recipe](levels=3))
    assert {o.role for o in snn.plan.operators if how in o.op} == {transpike.Role.NONLINEAR}
    without_ties(snn)
    found, _ = drift(snn, x, steps=6, check=True)
    assert max(found.outputs) < 1e-12 and not any(found.spikes) and found.emitted[0] > 0


def test_a_neuron_that_emits_what_is_not_a_level_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, images = digits()
    monkeypatch.setattr(type(next(iter(snn.neurons.values()))), "quantise", lambda self, v, threshold: v * 0.3)
    with pytest.raises(BrokenPromise, match="none of its levels"):
        Literal(snn, check=True).run(images, steps=1)


def test_the_benchmark_writes_a_row_per_family(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "equality.py"))
    monkeypatch.setattr(sys, "argv", ["equality.py", "--steps", "1", "torch_pre_norm"])
    benchmark["main"]()
    head, _, row, _, total = capsys.readouterr().out.splitlines()
    assert head == "| family | `ecmt` | `ecmt-code` | `differential` | spikes compared |"
    assert row.startswith("| torch_pre_norm | ") and row.count("e-1") + row.count("0e+00") == row.count(", 0 |") == 3
    assert total.startswith("1 families, 1 steps: largest ") and " 0 of " in total
