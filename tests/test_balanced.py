"""Balanced thresholds: the sensitivity they rest on, the budget they keep, and what they save."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import transpike
from transpike.calibration import sensitivity
from transpike.calibration.allocate import candidates
from transpike.calibration.grain import Grain, dimensions, octaves
from transpike.calibration.sensitivity import Sensitivity
from transpike.calibration.settle import settle
from transpike.errors import CalibrationError, ConfigError
from transpike.neurons import Differential, trajectory
from transpike.observers import Balanced, Grouped
from transpike.recipes import RECIPES, Recipe, balanced, cascade
from transpike.types import Threshold


def digits(count: int, *, first: int = 0) -> list[torch.Tensor]:
    from transpike.data import open_data

    samples = open_data("digits", split="test")
    return list(torch.stack([samples.fetch(i)[0] for i in range(first, first + count)]).split(16))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return transpike.zoo.load_model("digits")[0]


def divergence(snn: transpike.SpikingModel, batches: list[torch.Tensor]) -> tuple[float, float]:
    """Mean KL divergence from the source in nats after one step, and operations per sample."""
    total, operations, samples = 0.0, 0, 0
    for batch in batches:
        run = snn.simulate(batch, 1)
        p, q = snn.source(batch).double().log_softmax(-1), run.outputs[0].double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        operations += sum(int(counts.sum()) for counts in run.spikes.operations.values())
        samples += len(batch)
    return total / samples, operations / samples


def test_information_is_the_diagonal_of_the_fisher_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: W'(diag p - p p')W of a last layer, element by element."""
    monkeypatch.setattr(sensitivity, "PROBES", 4000)
    torch.manual_seed(0)
    first, last = torch.nn.Linear(5, 7), torch.nn.Linear(7, 4)
    net = torch.nn.Sequential(first, torch.nn.Tanh(), last).eval()
    inputs = torch.randn(6, 5)
    snn = transpike.convert(net, [inputs], "cascade")
    (site,) = snn.plan.sites
    readers = {site.name: (snn.plan.layers[-1].node,)}
    batches = [((inputs,), 6)]
    found = sensitivity.fisher_information(snn.program.module, readers, {site.name: 0}, batches)[site.name]
    p = net(inputs).softmax(-1)
    fisher = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    exact = torch.einsum("ki,bkl,li->i", last.weight, fisher, last.weight).detach().double()
    assert found.information == pytest.approx(exact.sum().item(), rel=0.05)
    assert torch.allclose(found.marginals[1], exact, rtol=0.15)
    assert found.marginals[0].item() == pytest.approx(found.information)
    assert (found.neurons, found.operations) == (7, 28)


def test_the_budget_is_kept_and_predicts_the_divergence(model: torch.nn.Module) -> None:
    calibration, others = digits(128), digits(128, first=128)
    for budget in (0.02, 0.005, 0.001):
        snn = transpike.convert(model, calibration, balanced(divergence=budget))
        assert divergence(snn, calibration)[0] == pytest.approx(budget, rel=0.2)
        assert budget / 3 < divergence(snn, others)[0] < budget * 3


@pytest.mark.parametrize("law", [lambda b: 5 * b, lambda b: 3 * b**0.7, lambda b: 40 * b**1.4, lambda b: b / 50])
def test_a_budget_settles_on_what_it_causes(law) -> None:
    tried: list[float] = []

    def attempt(budget: float) -> float:
        tried.append(budget)
        return budget

    found = settle(0.001, attempt, law)
    assert law(found) == pytest.approx(0.001, rel=0.17) and len(tried) <= 5


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_divergence_that_cannot_be_had_ends(value: float) -> None:
    assert settle(0.001, lambda budget: budget, lambda budget: value) > 0


def test_it_costs_fewer_operations_than_one_rule_for_all(model: torch.nn.Module) -> None:
    calibration, others = digits(128), digits(128, first=128)
    uniform = divergence(transpike.convert(model, calibration, cascade(levels=5)), others)
    ours = divergence(transpike.convert(model, calibration, balanced(divergence=uniform[0] / 3)), others)
    assert ours[0] < uniform[0]
    assert ours[1] < 0.9 * uniform[1]


def test_an_energy_budget_is_met(model: torch.nn.Module) -> None:
    calibration = digits(128)
    for energy in (0.1, 0.2):
        snn = transpike.convert(model, calibration, balanced(energy=energy))
        tally = snn.simulate(torch.cat(calibration), 1).spikes
        assert snn.energy(tally).ratio[0] == pytest.approx(energy, rel=0.25)


def test_neither_order_nor_batching_matters(model: torch.nn.Module) -> None:
    images = torch.cat(digits(48))
    one, other = (
        transpike.convert(model, list(pieces), balanced()) for pieces in (images.split(16), images.flip(0).split(9))
    )
    assert one.thresholds == other.thresholds
    assert one.recipe.site_levels == other.recipe.site_levels


def test_levels_travel_with_the_recipe(model: torch.nn.Module, tmp_path) -> None:
    images = torch.cat(digits(32))
    snn = transpike.convert(model, [images], "balanced")
    assert set(snn.recipe.site_levels) == {site.name for site in snn.plan.sites}
    assert Recipe.from_json(snn.recipe.to_json()) == snn.recipe
    again = transpike.load(snn.save_pretrained(tmp_path / "network"))
    anew = transpike.convert(model, again.calibration, "balanced", example=images)
    for network in (again, anew):
        assert torch.equal(network.simulate(images, 1).outputs, snn.simulate(images, 1).outputs)


def test_candidates_run_from_silence_to_fine() -> None:
    values = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    grain = Grain(torch.zeros(1, 1, dtype=torch.int64), Grouped(torch.zeros(1, 1)), torch.ones(1))
    grain.seen.update(values)
    found = candidates(Differential(8, 0.75, 6), float(values.abs().max()), grain, RECIPES["balanced"]())
    assert found.spikes[0] == 0
    assert found.error[0] == pytest.approx(1.0, rel=0.1)
    assert found.error[-1] < 1e-6
    assert (found.error[::4].diff() <= 0).all() and (found.spikes[::4].diff() >= 0).all()
    for threshold, levels in zip(found.thresholds, found.levels, strict=True):
        assert threshold.positive == threshold.negative
        assert levels == 24 or threshold.positive * 1.5 >= values.abs().max() or levels == 1


def test_groups_meet_what_their_own_thresholds_would() -> None:
    """Twin: every neuron run at its own threshold, weighted by its own share of the information."""
    torch.manual_seed(0)
    values, raised = torch.randn(40, 6), torch.tensor([[0, 2, 1, 0, 3, 1]])
    share = torch.rand(1, 6, dtype=torch.float64)
    share /= share.sum()
    seen = Grouped(raised)
    seen.update(values)
    by_octave = torch.zeros(4, dtype=torch.float64).index_add_(0, raised.flatten(), share.flatten())
    recipe = balanced()
    neuron = Differential(8, 0.75, 6)
    found = candidates(neuron, float(values.abs().max()), Grain(raised, seen, by_octave), recipe)
    per_group = torch.tensor([(raised == k).sum() for k in range(4)])
    for j in (0, 20, 40):
        theta = found.thresholds[j].positive * 2.0**raised
        own = [trajectory(replace(neuron, levels=found.levels[j]), values[None, :, e], Threshold(t, t), masks=True)
               for e, t in enumerate(theta.flatten().tolist())]  # fmt: skip
        weight = (by_octave / per_group)[raised.flatten()]
        error = sum(float((own[e][0][0] - values[:, e]).square().mean() * weight[e]) for e in range(6))
        assert float(found.error[j]) == pytest.approx(error, rel=0.15, abs=1e-9)
        assert float(found.spikes[j]) == pytest.approx(sum(float(o[1].double().mean()) for o in own) / 6, rel=0.05)


def test_octaves_make_the_noise_of_every_neuron_cost_the_same() -> None:
    rows, columns = torch.tensor([1.0, 4.0, 64.0]).double(), torch.tensor([1.0, 16.0]).double()
    information = rows[:, None] * columns
    found = Sensitivity(
        float(information.sum()), 6, 6, (information.sum().reshape(1), information.sum(1), information.sum(0))
    )
    raised, share = octaves(found, (1, 2))
    assert torch.allclose(share[0], information / information.sum())
    cost = information * 4.0 ** raised[0]
    assert float(cost.max() / cost.min()) <= 16  # each is rounded by half an octave at most
    assert raised.min() == 0
    alike, _ = octaves(found, ())
    assert not alike.any()


def test_what_is_read_nowhere_is_silent(model: torch.nn.Module) -> None:
    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.two(self.one(x).relu())[:, 0].relu())

    torch.manual_seed(0)
    snn = transpike.convert(First().eval(), [torch.randn(32, 5, 4)], "balanced")
    site = next(site for site in snn.plan.sites if site.name.startswith("two"))
    scale = snn.calibration.frames[site.name].scale
    assert scale.shape == (1, 5, 8) and scale[0, 1:].min() > 64 * scale[0, 0].max()


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel", "neuron"])
def test_finer_thresholds_save_operations(model: torch.nn.Module, granularity: str) -> None:
    snn = transpike.convert(model, digits(128), balanced(granularity=granularity))
    shapes = {name: frame.scale.shape for name, frame in snn.calibration.frames.items()}
    for site in snn.plan.sites:
        along = dimensions(site, granularity)
        if site.name in shapes:
            scale = snn.calibration.frames[site.name].scale
            others = [axis for axis in range(scale.dim()) if axis not in along]
            assert all(torch.equal(scale.amax(axis), scale.amin(axis)) for axis in others)
    assert bool(shapes) == (granularity != "tensor")


def test_a_model_without_scores_is_refused() -> None:
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu()).squeeze(-1)

    with pytest.raises(CalibrationError, match="first output holds class scores"):
        transpike.convert(Norm().eval(), [torch.randn(4, 3)], "balanced")


@pytest.mark.parametrize(
    "options", [{"divergence": 0}, {"divergence": -1.0}, {"energy": 0.0}, {"energy": float("inf")}]
)
def test_bad_budgets_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="must be a positive number"):
        Balanced(**options)


def test_where_the_output_has_its_batch_changes_nothing() -> None:
    """The same network with tokens first: signs of a probe belong to tokens, not to samples."""

    class Turned(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4)).double().eval()
    inputs = torch.randn(6, 3, 5, dtype=torch.float64)
    one = transpike.convert(net, [inputs])
    other = transpike.convert(Turned(net).eval(), [inputs.transpose(0, 1).contiguous()], batch_dim=1)
    assert [*one.thresholds.values()] == [*other.thresholds.values()]
    assert [neuron.levels for neuron in one.neurons.values()] == [neuron.levels for neuron in other.neurons.values()]
