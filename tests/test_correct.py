"""Corrections by channel: what they put right, where, and that they are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import transpike
from transpike._compare import convert_each
from transpike._correct import Pairing
from transpike._execute import run_body, run_prefix
from transpike._literal import Literal
from transpike.errors import CalibrationError, ConfigError
from transpike.neurons import fire_once, trajectory
from transpike.observers import MinimumError
from transpike.recipes import ecmt, parallel, qcfs, recipe_named


class Deep(nn.Sequential):
    """[B, 3, 6, 6] -> [B, 5], four layers behind neurons."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before in (3, 6, 6, 6):
            layers += [nn.Conv2d(before, 6, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(6 * 36, 5))


@pytest.fixture(scope="module")
def model() -> Deep:
    torch.manual_seed(0)
    return Deep().double().eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64) for n in (16, 32, 16)]


def noise(snn: transpike.SpikingModel, x: Tensor) -> float:
    return float((snn.simulate(x).outputs[-1] - snn.source(x)).square().mean())


def sites(snn: transpike.SpikingModel, x: Tensor, *, source: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """By site, what arrives and what leaves, in the network in spikes or in the source."""
    found = {}

    def fire(marker: torch.fx.Node, value: Tensor) -> Tensor:
        site = str(marker.args[1])
        neuron, threshold = snn.neurons[site], snn.thresholds[site]
        out = value if source else fire_once(neuron, None, 1, value, threshold, count=False)[1]
        found[site] = (value, out)
        return out

    with torch.no_grad():
        run_body(snn.program, run_prefix(snn.program, (x,)), fire)
    return found


CLIPPED = {"percentile": 0.8}


@pytest.mark.parametrize(
    "recipe", [parallel(levels=3, **CLIPPED), replace(qcfs(**CLIPPED), steps=3), ecmt(**CLIPPED)], ids=lambda r: r.name
)
@pytest.mark.parametrize("how", ["bias", "distribution"])
def test_a_correction_takes_back_what_clipping_takes_away_on_other_samples(
    model: Deep, batches: list[Tensor], recipe: transpike.Recipe, how: str
) -> None:
    plain = transpike.convert(model, batches[:2], recipe)
    corrected = transpike.correct(plain, batches[:2], how)
    assert noise(corrected, batches[2]) < 0.8 * noise(plain, batches[2])
    assert plain.calibration.frames == {} and plain.recipe.correction == "none"


def test_bias_makes_the_means_of_every_channel_those_of_the_source(model: Deep, batches: list[Tensor]) -> None:
    x = batches[1]
    snn = transpike.convert(model, [x], parallel(levels=3, correction="bias"))
    source = sites(snn, x, source=True)
    for site, (_, out) in sites(snn, x).items():
        axis = [0, 2, 3] if out.dim() == 4 else [0]
        torch.testing.assert_close(out.mean(axis), source[site][0].mean(axis), rtol=1e-9, atol=1e-9)
        shift = snn.calibration.frames[site].shift
        assert shift is not None and shift.shape == ((1, 6, 1, 1) if out.dim() == 4 else (1, 216))


def test_distribution_by_hand(model: Deep, batches: list[Tensor]) -> None:
    """The first site has no site before it: psi is 0 there and phi what the clipped, rounded activation lacks. Behind
    the neuron a spike is worth (theta + phi) / T."""
    x = batches[1]
    plain = transpike.convert(model, [x], parallel(levels=3))
    snn = transpike.correct(plain, [x], "distribution")
    name = plain.plan.sites[0].name
    frame, theta = snn.calibration.frames[name], plain.thresholds[name].positive
    value, out = sites(plain, x)[name]
    assert frame.offset is not None and frame.gain is not None and frame.shift is None
    assert frame.offset.abs().max() < 1e-12
    phi = (value - out).mean([0, 2, 3], keepdim=True)
    torch.testing.assert_close(frame.gain, 1 + phi / theta)
    torch.testing.assert_close(sites(snn, x)[name][1], out * (1 + phi / theta))
    second = plain.plan.sites[1].name
    source = sites(plain, x, source=True)[second][0]
    psi = (source - sites(snn, x)[second][0]).mean([0, 2, 3], keepdim=True)
    torch.testing.assert_close(snn.calibration.frames[second].offset, psi, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("how", ["bias", "distribution"])
def test_batches_and_earlier_corrections_make_no_difference(model: Deep, batches: list[Tensor], how: str) -> None:
    """At the first site, which no other site's correction reaches."""
    plain = transpike.convert(model, batches, parallel(levels=3, **CLIPPED))
    name, together = plain.plan.sites[0].name, torch.cat(batches)
    expected = transpike.correct(plain, [together], how).calibration.frames[name].tensors()
    again = transpike.correct(transpike.correct(plain, batches[:1], how), [together], how)
    for found in (transpike.correct(plain, batches, how), transpike.correct(plain, batches[::-1], how), again):
        tensors = found.calibration.frames[name].tensors()
        assert tensors.keys() == expected.keys()
        for part, tensor in expected.items():
            torch.testing.assert_close(tensors[part], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shifts", [False, True])
def test_frames_go_where_the_network_is_and_take_the_means_of_its_type(shifts: bool) -> None:
    source = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)).double().eval()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
        [1, 9, 0.1, 3]
    )
    snn = transpike.convert(source, [x], replace(ecmt(levels=2), range=MinimumError("channel", shifts)))
    frames = transpike.correct(snn, [x]).calibration.frames
    assert {tensor.dtype for frame in frames.values() for tensor in frame.tensors().values()} > {torch.float64}
    pairing = Pairing(snn.to("meta"), "bias", 2, clipped=False)  # a device that works with its own tensors only
    pairing.see((x.to("meta"),))
    assert all(
        frame.scale is not None and frame.scale.is_meta and frame.shift.is_meta for frame in pairing.frames.values()
    )


@pytest.mark.parametrize("how", ["bias", "distribution"])
def test_it_is_saved_and_runs_the_same_in_both_modes(
    model: Deep, batches: list[Tensor], how: str, tmp_path: Path
) -> None:
    snn = transpike.convert(model, batches[:2], parallel(levels=3, correction=how))
    x = batches[2]
    folded, streamed = (snn.simulate(x, 2, mode=mode) for mode in ("folded", "streaming"))
    torch.testing.assert_close(folded.outputs, streamed.outputs)
    assert str(folded.spikes.spikes) == str(streamed.spikes.spikes)
    loaded = transpike.load(snn.save_pretrained(tmp_path / "snn"), model=model)
    assert torch.equal(loaded.simulate(x, 2).outputs, folded.outputs) and loaded.recipe == snn.recipe
    with pytest.raises(ConfigError, match="without changing weights"):
        Literal(snn).run(x, steps=1)


def test_a_clipped_teacher_is_the_activation_without_levels(model: Deep, batches: list[Tensor]) -> None:
    """With a threshold per site and so many levels that only clipping is left, nothing is to be corrected."""
    plain = transpike.convert(model, batches, parallel(levels=255, percentile=0.8))
    free, bound = (transpike.correct(plain, batches, clipped=clipped).calibration.frames for clipped in (False, True))
    for name, frame in bound.items():
        assert frame.shift is not None and free[name].shift is not None
        assert frame.shift.abs().max() < 0.05 * free[name].shift.abs().max()


@pytest.mark.parametrize("name", ["ecmt", "differential", "cascade", "few-spikes", "balanced"])
def test_recipes_that_say_several_levels_take_a_correction(model: Deep, batches: list[Tensor], name: str) -> None:
    """With few levels the means of the sites are off; corrected they are those of the source. Neurons with thresholds
    of their own count by 1 / threshold^2."""
    options, x = {"divergence": 0.1} if name == "balanced" else {"levels": 2}, batches[1]
    recipes = [replace(recipe_named(name, correction=how, **options), steps=1) for how in ("none", "bias")]
    plain, corrected = (transpike.convert(model, [x], recipe) for recipe in recipes)
    assert corrected.recipe.correction == "bias" and corrected.thresholds == plain.thresholds
    source = sites(plain, x, source=True)
    uncorrected = sites(plain, x)
    for site, (_, out) in sites(corrected, x).items():
        axis, scale = [0, 2, 3] if out.dim() == 4 else [0], corrected.calibration.frames[site].scale
        weights = torch.ones_like(out) if scale is None else (1 / scale.square()).expand_as(out)
        gap, before = (
            (((found - source[site][0]) * weights).sum(axis) / weights.sum(axis)).abs().max()
            for found in (out, uncorrected[site][1])
        )
        assert gap < 1e-6 < before


def test_what_nothing_reads_does_not_decide_a_correction() -> None:
    """Of five tokens the head reads the first; the others are silent, so a mean over all would be theirs."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(x).relu())[:, 0].relu())

    torch.manual_seed(0)
    source, x = First().eval(), torch.randn(64, 5, 4)
    plain, corrected = (
        transpike.convert(source, [x], recipe_named("balanced", divergence=0.05, correction=how))
        for how in ("none", "bias")
    )
    site = next(site.name for site in plain.plan.sites if site.name.startswith("two"))
    off = [
        (sites(snn, x)[site][1] - sites(snn, x, source=True)[site][0])[:, 0].mean(0).abs() for snn in (plain, corrected)
    ]
    assert off[1].max() < 0.02 * off[0].max()


def test_compare_corrects_each_recipe_as_it_asks(model: Deep, batches: list[Tensor]) -> None:
    recipes = {how: parallel(levels=3, correction=how) for how in ("none", "bias", "distribution")}
    networks = convert_each(model, iter(batches[:2]), recipes)
    found = {label: network.calibration.frames for label, network in networks.items()}  # type: ignore[union-attr]
    alone = transpike.convert(model, batches[:2], recipes["bias"]).calibration.frames
    assert found["none"] == {} and found["bias"].keys() == alone.keys()
    assert all(torch.equal(found["bias"][name].shift, alone[name].shift) for name in alone)
    assert all(frame.gain is not None for frame in found["distribution"].values())
    for network in networks.values():
        run = network.simulate(batches[2], 1)  # type: ignore[union-attr]
        assert str(network.energy_sheet(run)) and network.energy(run).energy_pj[0] > 0  # type: ignore[union-attr]


def test_products_have_nothing_to_take_up_a_shift() -> None:
    from transpike.zoo.digits import load_digits, load_model

    images = torch.from_numpy(load_digits("test")[0][:8]).float().unsqueeze(1) / 16
    snn = transpike.convert(load_model(), [images], parallel(levels=4, correction="bias"))
    kinds = {site.name: site.kind for site in snn.plan.sites}
    corrected = set(snn.calibration.frames)
    assert corrected == {name for name, kind in kinds.items() if kind == "linear"} and len(corrected) < len(kinds)


def test_what_cannot_be_corrected_is_refused(model: Deep, batches: list[Tensor]) -> None:
    plain = transpike.convert(model, batches, parallel(levels=3))
    with pytest.raises(ConfigError, match="must be bias or distribution, not 'none'"):
        transpike.correct(plain, batches, "none")
    with pytest.raises(CalibrationError, match="no samples"):
        transpike.correct(plain, [])
    with pytest.raises(ConfigError, match="correction must be one of none, bias, distribution, not 'both'"):
        parallel(correction="both")
    with pytest.raises(ConfigError, match="needs calibration samples"):
        transpike.convert(model, dict(plain.thresholds), parallel(correction="bias"), example=batches[0])
    uneven = transpike.convert(model, batches, "balanced")
    assert any(frame.scale is not None for frame in uneven.calibration.frames.values())
    with pytest.raises(ConfigError, match="one threshold per tensor"):
        transpike.correct(uneven, batches, "distribution")
    assert noise(transpike.correct(uneven, batches), batches[0]) > 0
    with pytest.raises(ConfigError, match="judged without a correction"):
        transpike.tune(model, batches, batches, parallel(correction="bias"), max_drop=1.0)


def test_a_frame_holds_one_step_at_a_time_as_it_does_for_all(model: Deep, batches: list[Tensor]) -> None:
    snn = transpike.convert(model, batches, parallel(levels=3, correction="distribution"))
    name = snn.plan.sites[1].name
    means = torch.rand(1, 4, 6, 6, 6, dtype=torch.float64)
    out, spikes, _ = trajectory(snn.neurons[name], means, snn.thresholds[name], masks=True)
    _, once, count = fire_once(snn.neurons[name], None, 1, means[0], snn.thresholds[name], count=True)
    assert torch.equal(out[0], once) and torch.equal(spikes[0], count)  # type: ignore[index, arg-type]
