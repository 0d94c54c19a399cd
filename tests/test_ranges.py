"""Fixed-point thresholds, thresholds by channel and head, and calibration site after site: against slow twins."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import transpike
from transpike._drift import drift, widen
from transpike.calibration.allocate import effective_levels
from transpike.calibration.fine import SCALES
from transpike.calibration.grain import dimensions
from transpike.calibration.sequential import held
from transpike.errors import CalibrationError, ConfigError
from transpike.neurons import Differential, MultiThreshold, Parallel, advance
from transpike.observers import FixedPoint, Histogram, Percentile
from transpike.observers.fixed_point import fixed_point
from transpike.recipes import Recipe, SiteChoice, balanced, cascade, differential, ecmt, few_spikes, qcfs, recipe_named
from transpike.types import SiteKind, Threshold


def digits(count: int) -> list[torch.Tensor]:
    from transpike.data import open_data

    samples = open_data("digits", split="train")
    return list(torch.stack([samples.fetch(i)[0] for i in range(count)]).split(16))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return transpike.zoo.load_model("digits")[0]


def normal(mean: float, deviation: float, count: int = 400_000) -> torch.Tensor:
    """The quantiles of N(mean, deviation): samples without chance."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return mean + deviation * math.sqrt(2) * torch.erfinv(2 * places - 1)


def seen(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    assert histogram.update(values.float())
    return histogram


def kappa(theta: float, mean: float, deviation: float, count: int) -> float:
    """As DCGS prints it, for Gaussian pre-activations."""
    i = torch.arange(1, count + 1, dtype=torch.float64)
    c = ((2 * i - 1) * theta / (2 * count) - mean) / (math.sqrt(2) * deviation)
    erf, exp = torch.erf(c), torch.exp(-(c**2))
    above = (mean / theta) * (1 - float(erf.mean())) + (deviation / theta) * math.sqrt(2 / math.pi) * float(exp.mean())
    return above / (1 - float(((2 * i - 1) * erf).sum()) / count**2)


def squared_error(values: torch.Tensor, theta: float, count: int) -> float:
    """Of the uniform quantiser itself, on positive values."""
    code = (values * (count / theta) + 0.5).floor().clamp(0, count)
    return float((code * (theta / count) - values).square().mean())


# --- the fixed point -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.5, 1.0), (3.0, 0.5), (-0.3, 2.0)])
@pytest.mark.parametrize("count", [1, 2, 4, 16, 64])
def test_on_a_gaussian_it_is_the_papers_fixed_point(mean: float, deviation: float, count: int) -> None:
    theta = FixedPoint().at(seen(normal(mean, deviation)), count).positive
    paper = 1.0
    for _ in range(4000):  # the paper's 100 do not arrive at 64 levels
        paper *= kappa(paper, mean, deviation, count)
    assert theta == pytest.approx(paper, rel=0.01)
    assert kappa(theta, mean, deviation, count) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["normal", "heavy", "two lumps", "uniform"])
@pytest.mark.parametrize("count", [1, 3, 16, 128])
def test_no_threshold_of_a_grid_has_less_error(name: str, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, generator=generator, dtype=torch.float64)
    values = {
        "normal": noise,
        "heavy": noise * noise.roll(1).exp(),
        "two lumps": torch.where(noise.roll(1) > 1.5, noise.abs() + 20, noise.abs() + 1),
        "uniform": torch.rand(20_000, generator=generator, dtype=torch.float64),
    }[name]
    histogram, positive = seen(values), values.clamp(min=0)
    theta = FixedPoint().at(histogram, count).positive
    grid = [histogram.maximum * 2.0 ** (-j / 64) for j in range(-64, 400)]
    least = min(squared_error(positive, other, count) for other in grid)
    assert squared_error(positive, theta, count) <= least * 1.02 + 1e-12  # two minima of a sample may lie so close


def test_signs_are_apart_unless_symmetric() -> None:
    values = torch.cat([normal(0, 1, 20_000).abs() * 2, -normal(0, 1, 20_000).abs() / 4])
    apart, both = FixedPoint().at(seen(values), 16), FixedPoint(symmetric=True).at(seen(values), 16)
    assert apart.positive == pytest.approx(8 * apart.negative, rel=0.01)
    assert both.positive == both.negative
    alone = FixedPoint().at(seen(values[values > 0]), 16)
    assert apart.positive == pytest.approx(alone.positive, rel=1e-6), "the other sign has no say"
    doubled = FixedPoint(margin=2.0).at(seen(values), 16)
    assert doubled == Threshold(2 * apart.positive, 2 * apart.negative)


def test_degenerate_histograms() -> None:
    assert FixedPoint().at(seen(torch.zeros(9)), 8) == Threshold(0.0, 0.0)
    one = FixedPoint().at(seen(torch.full((5,), 0.3)), 1)
    assert one.positive == pytest.approx(0.3, rel=2e-3)
    assert one.negative == 0.0
    for margin in (0, -1.0, math.inf):
        with pytest.raises(ConfigError, match="margin"):
            FixedPoint(margin=margin)


def test_levels_that_a_neuron_has() -> None:
    assert effective_levels(MultiThreshold(6), 4) == effective_levels(Differential(6), 4) == 4 * 64
    assert effective_levels(MultiThreshold(1, 0.5), 8) == effective_levels(Parallel(8), 1) == 8
    means = torch.linspace(0, 2, 300, dtype=torch.float64)
    out = held(MultiThreshold(1, 0.5), means, Threshold(1.0, 0.0), 8)
    assert torch.allclose(out, (means * 8 + 0.5).floor().clamp(0, 8) / 8), "integrate and fire is that quantiser"


def test_recipes_take_the_rule(model: torch.nn.Module) -> None:
    for build in (ecmt, differential, cascade, few_spikes, qcfs):
        assert isinstance(build(rule="fixed-point").range, FixedPoint)
    recipe = qcfs(rule="fixed-point")
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    snn = transpike.convert(model, digits(32), recipe)
    plain = transpike.convert(model, digits(32), qcfs(percentile=1.0))
    below = [0 < snn.thresholds[name].positive <= plain.thresholds[name].positive * 17 / 15 for name in snn.thresholds]
    assert all(below), "at most one level more than the largest activation"
    assert snn.thresholds != plain.thresholds
    with pytest.raises(ConfigError, match="percentile, maximum, mse, fixed-point"):
        differential(rule="fixed")


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_of_the_uniform_distribution_all_cells_are_alike(count: int) -> None:
    """By hand: N whole cells and the half one at zero fill [0, 1]."""

    def tails(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inside = bounds.clamp(max=1)
        return 1 - inside, (1 - inside**2) / 2

    assert fixed_point(tails, 1.0, count) == pytest.approx(2 * count / (2 * count + 1), rel=1e-6)


# --- channels and heads ----------------------------------------------------------------------------------------------


def at_sites(snn: transpike.SpikingModel, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What every site sees of the source, all samples together."""
    from transpike._execute import run_body, run_prefix

    found: dict[str, list[torch.Tensor]] = {}
    for batch in batches:

        def note(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            found.setdefault(str(marker.args[1]), []).append(value)
            return value

        with torch.no_grad():
            run_body(snn.program, run_prefix(snn.program, snn.prepare(batch)), note)
    return {name: torch.cat(parts, snn_axis(snn, name)) for name, parts in found.items()}


def snn_axis(snn: transpike.SpikingModel, name: str) -> int:
    return next(site.batch_axis or 0 for site in snn.plan.sites if site.name == name)


@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize("percentile", [1.0, 0.999, 0.9])
@pytest.mark.parametrize("build", [ecmt, differential])
def test_a_channels_threshold_is_that_of_its_own_values(
    model: torch.nn.Module, granularity: str, percentile: float, build: object
) -> None:
    """Twin: numpy's quantiles by channel, rounded up to a power of two of the site's."""
    batches = digits(32)
    recipe = build(percentile=percentile, granularity=granularity)  # type: ignore[operator]
    snn = transpike.convert(model, batches, recipe)
    values = at_sites(snn, batches)
    for site in snn.plan.sites:
        axes, theta = dimensions(site, granularity), snn.thresholds[site.name]
        if not axes:
            assert site.name not in snn.calibration.frames
            continue
        x = np.moveaxis(values[site.name].double().numpy(), axes, range(len(axes)))
        groups = x.shape[: len(axes)]
        rows = x.reshape(*groups, -1)
        signs = [rows, -rows] if build is ecmt else [np.abs(rows)] * 2
        own = [np.maximum(np.quantile(sign, percentile, axis=-1, method="inverted_cdf"), 0) for sign in signs]
        if build is ecmt and percentile < 1:  # of -x the 0.1 smallest, which is not the 0.9 of -x where ranks tie
            own[1] = np.maximum(-np.quantile(rows, 1 - percentile, axis=-1, method="inverted_cdf"), 0)
        for side, whole in zip(own, (theta.positive, theta.negative), strict=True):
            assert side.max() <= whole <= side.max() * (1 + 2**-7)
        share = np.maximum(own[0] / (theta.positive or 1), own[1] / (theta.negative or 1))
        wanted = 2.0 ** np.clip(np.ceil(np.log2(np.maximum(share, 2.0**-30))), -16, 0)
        frame = snn.calibration.frames.get(site.name)
        scale = np.ones(groups) if frame is None else frame.scale.float().numpy().reshape(groups)  # type: ignore[union-attr]
        assert np.array_equal(scale / scale.max(), wanted)
        assert scale.min() == 1, "counted from the finest up"
        assert snn.neurons[site.name].levels == 8 + np.log2(scale.max()), "and all reach the site's largest level"
        scale = wanted
        if percentile == 1:
            bound = (theta.positive * scale, theta.negative * scale)
            assert (rows.max(-1) <= bound[0]).all() and (-rows.min(-1) <= bound[1]).all(), "nothing is clipped"


def test_levels_stay_on_one_ladder(model: torch.nn.Module) -> None:
    snn = transpike.convert(model, digits(32), differential(granularity="channel"))
    assert snn.calibration.frames
    for name, frame in snn.calibration.frames.items():
        low, high = frame.octaves  # type: ignore[misc]
        assert low == 0 and high <= 16
        assert snn.neurons[name].levels == 8 + high
        ladder = np.log2(np.abs(snn.neurons[name].amplitudes(snn.thresholds[name])) / snn.thresholds[name].positive)
        assert np.array_equal(ladder, np.round(ladder))


def test_in_spikes_it_is_the_same_network() -> None:
    snn = widen(transpike.convert(transpike.zoo.load_model("digits")[0], digits(16), ecmt(granularity="channel")))
    assert snn.calibration.frames
    found, _ = drift(snn, digits(2)[0].double(), steps=2)
    assert max(found.outputs) < 1e-9 * found.scale
    assert sum(found.spikes) == 0 < sum(found.emitted)


def test_a_saved_network_comes_back(model: torch.nn.Module, tmp_path: Path) -> None:
    recipe = differential(granularity="channel", sequential=True)
    snn = transpike.convert(model, digits(16), recipe)
    again = transpike.load(snn.save_pretrained(tmp_path / "snn"))
    assert again.recipe == snn.recipe and replace(again.recipe, site_levels={}) == recipe
    assert again.recipe.range.granularity == "channel"  # type: ignore[attr-defined]
    batch = digits(16)[0]
    assert torch.equal(snn.simulate(batch, 3).outputs, again.simulate(batch, 3).outputs)


def test_outlier_channels_cost_less_with_thresholds_of_their_own() -> None:
    torch.manual_seed(0)
    first, last = torch.nn.Linear(16, 24), torch.nn.Linear(24, 6)
    with torch.no_grad():
        first.weight[3] *= 50
        last.weight[:, 3] /= 50
    net, inputs = torch.nn.Sequential(first, torch.nn.Tanh(), torch.nn.Linear(24, 24), last).eval(), torch.randn(64, 16)
    net[1] = torch.nn.ReLU()
    with torch.no_grad():
        net[2].weight.copy_(torch.eye(24))

    def error(granularity: str) -> float:
        snn = transpike.convert(net, [inputs], differential(levels=4, granularity=granularity))
        return float((snn.simulate(inputs, 3).outputs[-1] - net(inputs).detach()).square().mean())

    assert error("channel") < 0.1 * error("tensor")


def test_what_is_off_leaves_no_trace(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a second pass")

    monkeypatch.setattr(transpike.calibration.grain.Grouping, "run", refuse)
    monkeypatch.setattr(sys.modules["transpike.calibration.calibrate"], "sequential", refuse)
    snn = transpike.convert(model, digits(16), differential())
    assert not snn.calibration.frames
    text = json.dumps(snn.recipe.to_json()) + str(snn.plan)
    assert "granularity" not in text and "sequential" not in text and "site after site" not in text
    with pytest.raises(AssertionError, match="second pass"):
        transpike.convert(model, digits(16), differential(granularity="channel"))


def test_unknown_granularities_are_refused() -> None:
    with pytest.raises(ConfigError, match="tensor, head, channel"):
        Percentile(granularity="neuron")
    with pytest.raises(ConfigError, match="needs rule percentile, maximum or mse"):
        differential(rule="fixed-point", granularity="channel")
    with pytest.raises(ConfigError, match="no option 'granularity'"):
        recipe_named("ecmt-code", granularity="channel")


@pytest.mark.parametrize("sequential", [False, True])
def test_channels_take_the_scale_of_least_error(model: torch.nn.Module, sequential: bool) -> None:
    """Twin: every scale tried on all a site saw of the first sites, where source and converted network are alike."""
    batches = digits(32)
    recipe = cascade(levels=3, rule="mse", granularity="channel", sequential=sequential)
    snn = transpike.convert(model, batches, recipe)
    first = snn.plan.sites[0]
    value, theta = at_sites(snn, batches)[first.name], snn.thresholds[first.name]
    axes = [axis for axis in range(value.dim()) if axis not in dimensions(first, "channel")]
    errors = []
    for scale in SCALES:
        out = held(recipe.neuron_for(first), value.double() / scale, theta, 1) * scale
        errors.append((out - value).square().sum(axes))
    frame = snn.calibration.frames[first.name]
    wanted = torch.tensor(SCALES)[torch.stack(errors).argmin(0)].flatten()
    found = frame.scale.float().flatten() * wanted.min()  # type: ignore[union-attr]
    assert (found == wanted).float().mean() > 0.98 and len(wanted.unique()) > 1
    assert snn.neurons[first.name].levels == 3 - math.log2(float(wanted.min()))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("rule", ["mse", "maximum"])
def test_channels_that_held_little_can_hold_more_on_other_samples(rule: str, sequential: bool) -> None:
    """What calibration has not seen in a channel, but in the site, is said and not clipped."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).eval()
    with torch.no_grad():
        net[0].weight[:6] *= 0.05
        net[0].bias[:6] *= 0.05
    recipe = cascade(levels=6, rule=rule, granularity="channel", sequential=sequential)
    snn = transpike.convert(net, [torch.randn(64, 8)], recipe)
    (name,) = snn.thresholds
    theta = snn.thresholds[name].positive
    assert snn.neurons[name].levels > 6
    x = torch.linspace(0, theta, 50)[:, None].expand(50, 12)
    out = held(snn.neurons[name], x, snn.thresholds[name], 1)
    assert (out - x).abs().max() <= theta * 2.0**-5


def test_sequential_scales_are_those_behind_converted_sites(model: torch.nn.Module) -> None:
    batches, recipe = digits(32), cascade(levels=2, rule="mse", granularity="channel")
    plain, other = (transpike.convert(model, batches, replace(recipe, sequential=s)) for s in (False, True))
    frames = [snn.calibration.frames for snn in (plain, other)]
    shared = frames[0].keys() & frames[1].keys()
    assert any(not torch.equal(frames[0][name].scale, frames[1][name].scale) for name in shared)  # type: ignore[arg-type]


# --- site after site -------------------------------------------------------------------------------------------------


def one_by_one(snn: transpike.SpikingModel, batch: torch.Tensor) -> dict[str, float]:
    """Twin: the largest |x| of every site when those before it run step by step, from the start for every site."""
    from transpike._execute import run_body, run_prefix

    crossing = run_prefix(snn.program, snn.prepare(batch))
    found: dict[str, float] = {}
    for site in snn.plan.sites:
        before = dict(found)

        def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            name = str(marker.args[1])
            found.setdefault(name, float(value.abs().max())) if name == site.name else None  # noqa: B023
            if name not in before:  # noqa: B023
                return value
            state, mean = None, value
            for t in range(1, snn.recipe.steps + 1):
                state, mean, _ = advance(snn.neurons[name], state, t, value, snn.thresholds[name])
            return mean

        with torch.no_grad():
            run_body(snn.program, crossing, fire)
    return found


@pytest.mark.parametrize("recipe", [differential(levels=4, sequential=True), few_spikes(levels=4, sequential=True)])
def test_a_site_sees_what_converted_sites_let_through(model: torch.nn.Module, recipe: Recipe) -> None:
    batches = digits(32)
    snn = transpike.convert(model, batches, replace(recipe, steps=2))
    twin = one_by_one(snn, torch.cat(batches))
    assert twin.keys() == snn.thresholds.keys()
    plain = transpike.convert(model, batches, replace(recipe, sequential=False, steps=2))
    for name, peak in twin.items():
        assert peak * (1 - 1e-5) <= snn.thresholds[name].positive <= peak * (1 + 2**-7) * (1 + 1e-5)
    first = snn.plan.sites[0].name
    assert snn.thresholds[first] == plain.thresholds[first]
    apart = sum(snn.thresholds[name] != plain.thresholds[name] for name in twin)
    assert apart > len(twin) / 2


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_neurons_that_change_nothing_change_no_threshold(model: torch.nn.Module, granularity: str) -> None:
    recipe = replace(differential(levels=24, granularity=granularity), steps=40)
    one = transpike.convert(model, digits(32), replace(recipe, sequential=True))
    other = transpike.convert(model, digits(32), recipe)
    for name, threshold in one.thresholds.items():
        assert threshold.positive == pytest.approx(other.thresholds[name].positive, rel=1e-4 + 2**-7)
    same = [one.thresholds[name] == other.thresholds[name] for name in one.thresholds]
    assert sum(same) >= len(same) - 2, "but for activations that lie on a boundary of rounding"
    assert one.calibration.frames.keys() == other.calibration.frames.keys()


def test_batches_of_any_size_give_the_same(model: torch.nn.Module) -> None:
    whole = torch.cat(digits(32))
    found = [transpike.convert(model, parts, differential(sequential=True, levels=5)) for parts in (
        list(whole.split(32)), list(whole.split(7)))]  # fmt: skip
    for name, threshold in found[0].thresholds.items():
        assert threshold.positive == pytest.approx(found[1].thresholds[name].positive, rel=0.02)


def test_given_thresholds_stay_and_what_cannot_be_is_refused(model: torch.nn.Module) -> None:
    given = SiteChoice(threshold=Threshold(0.5, 0.5))
    recipe = replace(differential(sequential=True), kinds={SiteKind.QUERY: given})
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    snn = transpike.convert(model, digits(16), recipe)
    queries = [site.name for site in snn.plan.sites if site.kind is SiteKind.QUERY]
    assert queries and all(snn.thresholds[name] == given.threshold for name in queries)
    assert "site after site" in recipe.lines()[0]
    with pytest.raises(ConfigError, match="all sites together"):
        replace(balanced(), sequential=True)
    with pytest.raises(ConfigError, match="sequential must be"):
        replace(differential(), sequential=1)
    with pytest.raises(CalibrationError, match="no samples"):
        transpike.convert(model, [], differential(sequential=True))


@pytest.mark.parametrize("name", ["ecmt", "differential", "cascade", "qcfs", "few-spikes", "mbe", "parallel"])
def test_all_ingredients_together(model: torch.nn.Module, name: str, tmp_path: Path) -> None:
    options = {"rule": "mse", "granularity": "channel", "sequential": True, "correction": "bias"}
    few = {} if name == "qcfs" else {"levels": 3}
    recipe = replace(recipe_named(name, **options, **few), steps=min(recipe_named(name).steps, 2))
    snn = transpike.convert(model, digits(16), recipe)
    frames = snn.calibration.frames.values()
    assert any(frame.scale is not None for frame in frames) and any(frame.shift is not None for frame in frames)
    again = transpike.load(snn.save_pretrained(tmp_path / "snn"))
    assert again.recipe == snn.recipe
    run, batch = snn.simulate(digits(4)[0], 2), digits(4)[0]
    assert run.outputs.isfinite().all() and torch.equal(run.outputs, again.simulate(batch, 2).outputs)
    assert snn.energy(run).energy_pj[0] > 0


def test_compare_takes_them_side_by_side(model: torch.nn.Module) -> None:
    recipes = {"plain": differential(), "fine": differential(granularity="channel", sequential=True)}
    networks = transpike._compare.convert_each(model, digits(16), recipes)
    assert not networks["plain"].calibration.frames  # type: ignore[union-attr]
    alone = transpike.convert(model, digits(16), recipes["fine"])
    assert networks["fine"].thresholds == alone.thresholds  # type: ignore[union-attr]
    assert networks["fine"].calibration.frames.keys() == alone.calibration.frames.keys()  # type: ignore[union-attr]
