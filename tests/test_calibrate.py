"""Calibration: thresholds from samples, whatever their batches; thresholds given; and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

import transpike
from oracle import BLOCK_SITES, Block, quantile
from transpike import SiteChoice, SiteKind, Threshold
from transpike._execute import run_body, run_prefix
from transpike._mark import insert_sites
from transpike.calibration import calibrate
from transpike.calibration import given as thresholds_given
from transpike.errors import CalibrationError, CaptureError, CheckpointError, ConfigError, TranspikeError
from transpike.observers import Maximum, Percentile
from transpike.observers.rounding import round_up
from transpike.recipes import Recipe, balanced, ecmt, recipe_named


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return randn(20, 4, 6, seed=1)


@pytest.fixture(scope="module")
def activations(block: Block, samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every site sees of the samples."""
    snn = transpike.convert(block, [samples])
    seen: dict[str, torch.Tensor] = {}

    def look(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        seen[str(marker.args[1])] = value.detach()
        return value

    run_body(snn.program, run_prefix(snn.program, (samples,)), look)
    return seen


@pytest.fixture(scope="module")
def captured(block: Block, samples: torch.Tensor) -> transpike.Captured:
    return transpike.capture(block, samples)


@pytest.fixture(scope="module")
def decided(captured: transpike.Captured) -> transpike.Plan:
    return transpike.plan(captured)


@pytest.fixture(scope="module")
def measure(captured: transpike.Captured, decided: transpike.Plan) -> Any:
    """Calibration alone: `convert` captures anew every time."""
    marked = insert_sites(captured, decided)

    def run(batches: Any, recipe: Recipe | None = None, **options: Any) -> transpike.Calibration:
        return calibrate(captured, marked, decided, recipe or ecmt(), batches, **options)

    return run


def exact(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, threshold_bits=None)


def watching_two(recipe: Recipe) -> Recipe:
    """A histogram is megabytes; where the sites do not matter, two are watched."""
    rest = dict.fromkeys(("attn*", "fc1:input"), SiteChoice(threshold=Threshold(1.0, 1.0)))
    return dataclasses.replace(recipe, patterns=rest)


# --- what is measured ------------------------------------------------------------------------------------------------


def test_thresholds_are_the_rule_on_the_activations(
    measure: Any, samples: torch.Tensor, activations: dict[str, torch.Tensor]
) -> None:
    found = measure([samples], exact(ecmt(percentile=0.9))).thresholds
    assert set(found) == set(activations) == set(BLOCK_SITES)
    for site, values in activations.items():
        numbers = values.flatten().tolist()
        assert found[site].positive == pytest.approx(quantile(numbers, 0.9), rel=2**-10)
        assert found[site].negative == pytest.approx(-quantile(numbers, 1 - 0.9), rel=2**-10)


def test_maxima_are_exact_and_rounded_up(
    measure: Any, samples: torch.Tensor, activations: dict[str, torch.Tensor]
) -> None:
    raw = measure([samples], exact(ecmt(percentile=1.0))).thresholds
    rounded = measure([samples], ecmt(percentile=1.0)).thresholds
    for site, values in activations.items():
        top, bottom = values.max().item(), -values.min().item()
        assert (raw[site].positive, raw[site].negative) == pytest.approx((top, bottom), rel=1e-12)
        assert rounded[site] == Threshold(round_up(max(top, 0.0), 8), round_up(max(bottom, 0.0), 8))
    assert raw["attn:softmax"].negative < 0, "the published rule keeps the sign"
    assert rounded["attn:softmax"].negative == 0


@pytest.mark.parametrize("cuts", [[], [1], [13], [2, 9, 10]], ids=str)
def test_batches_and_order_do_not_matter(measure: Any, samples: torch.Tensor, cuts: list[int]) -> None:
    recipe = watching_two(exact(ecmt(percentile=0.99)))
    shuffled = samples[torch.randperm(20, generator=torch.Generator().manual_seed(len(cuts)))]
    split = measure(iter(torch.tensor_split(shuffled, cuts)), recipe)
    assert split == measure([samples], recipe)
    assert split.samples == 20


@pytest.mark.parametrize(("size", "cap"), [(1, 3), (3, 5), (7, 5), (7, 14), (20, 20), (7, 99)])
def test_the_cap_counts_samples(measure: Any, samples: torch.Tensor, size: int, cap: int) -> None:
    taken: list[int] = []
    reports: list[int] = []

    def batches() -> Any:
        for batch in samples.split(size):
            taken.append(len(batch))
            yield batch

    recipe = watching_two(ecmt())
    capped = measure(batches(), recipe, max_samples=cap, progress=reports.append)
    expected = min(cap, 20)
    assert capped.samples == reports[-1] == expected
    assert reports == sorted(reports)
    assert sum(taken) < expected + size, "batches behind the cap are not even read"
    assert capped == measure([samples[:expected]], recipe)


def test_the_default_cap_is_512_and_none_lifts_it(measure: Any, samples: torch.Tensor) -> None:
    large = samples.repeat(15, 1, 1)
    assert measure([large] * 2, watching_two(ecmt())).samples == 512
    assert measure([large] * 2, watching_two(ecmt()), max_samples=None).samples == 600


@pytest.mark.parametrize("cap", [0, -1, 2.5, "3"])
def test_a_cap_below_one_is_refused(measure: Any, samples: torch.Tensor, cap: Any) -> None:
    with pytest.raises(ConfigError, match="max_samples must be"):
        measure([samples], max_samples=cap)


def test_ways_to_hand_over_samples(block: Block, measure: Any, samples: torch.Tensor) -> None:
    expected = measure([samples]).thresholds
    assert measure([(samples,)]).thresholds == measure([[samples]]).thresholds == expected
    for calibration in (samples, (batch for batch in samples.split(10))):
        assert transpike.convert(block, calibration, "ecmt").thresholds == expected
    named = transpike.convert(block, {"x": samples}, "ecmt")
    assert named.thresholds == expected
    assert named.simulate({"x": samples}, 1).steps == 1


def test_the_calibration_prints_as_json(measure: Any, samples: torch.Tensor) -> None:
    calibration = measure([samples])
    data = calibration.to_json()
    assert data["samples"] == 20
    assert {name: Threshold(*pair) for name, pair in data["thresholds"].items()} == calibration.thresholds


# --- recipe choices --------------------------------------------------------------------------------------------------


def test_kinds_patterns_and_levels_reach_their_sites(
    block: Block, measure: Any, samples: torch.Tensor, activations: dict[str, torch.Tensor]
) -> None:
    recipe = dataclasses.replace(
        ecmt(percentile=0.99),
        kinds={SiteKind.SOFTMAX: SiteChoice(threshold=Threshold(0.5, 0.25)), SiteKind.LINEAR: SiteChoice(levels=6)},
        patterns={
            "fc?:input": SiteChoice(levels=3, range=Maximum(margin=2.0)),
            "fc2:input": SiteChoice(range=Percentile(0.5, symmetric=True)),
        },
    )
    snn = transpike.convert(block, [samples], recipe)
    levels = {site: neuron.levels for site, neuron in snn.neurons.items()}
    assert levels == {
        "attn.q:input": 6, "attn.proj:input": 6, "head:input": 6, "fc1:input": 3, "fc2:input": 3,
        "attn:query": 8, "attn:key": 8, "attn:value": 8, "attn:softmax": 8,
    }  # fmt: skip
    assert snn.thresholds["attn:softmax"] == Threshold(0.5, 0.25)
    largest = round_up(2 * activations["fc1:input"].abs().max().item(), 8)
    assert snn.thresholds["fc1:input"] == Threshold(largest, largest)
    median = quantile(activations["fc2:input"].abs().flatten().tolist(), 0.5)
    assert snn.thresholds["fc2:input"].positive == snn.thresholds["fc2:input"].negative
    assert median * (1 - 2**-9) <= snn.thresholds["fc2:input"].positive <= median * (1 + 2**-6)
    plain = measure([samples], ecmt(percentile=0.99)).thresholds
    untouched = set(plain) - {"attn:softmax", "fc1:input", "fc2:input"}
    assert {site: snn.thresholds[site] for site in untouched} == {site: plain[site] for site in untouched}


def test_a_pattern_that_matches_nothing_is_told(block: Block, samples: torch.Tensor) -> None:
    recipe = dataclasses.replace(ecmt(), patterns={"blocks.7.*": SiteChoice(levels=3)})
    with pytest.raises(ConfigError, match=r"'blocks\.7\.\*' matches no site"):
        transpike.convert(block, [samples], recipe)


def test_bad_levels_for_one_site_are_refused() -> None:
    with pytest.raises(ConfigError, match="levels must be"):
        SiteChoice(levels=999)


@pytest.mark.parametrize("bits", [3, 16])
def test_threshold_bits(measure: Any, samples: torch.Tensor, bits: int) -> None:
    found = measure([samples], dataclasses.replace(ecmt(), threshold_bits=bits)).thresholds
    raw = measure([samples], exact(ecmt())).thresholds
    for site, threshold in found.items():
        assert threshold.positive == round_up(threshold.positive, bits) >= raw[site].positive
        assert threshold.positive < raw[site].positive * (1 + 2.0 ** (1 - bits))


# --- given thresholds ------------------------------------------------------------------------------------------------


def test_given_thresholds_of_every_form(block: Block, samples: torch.Tensor) -> None:
    forms: list[Any] = [0.5, 2, (0.5, 0.25), [1, 0], Threshold(0.75, 0.125), 0.0, (0.5, -0.125), np.float64(0.5), 1.0]
    snn = transpike.convert(block, dict(zip(BLOCK_SITES, forms, strict=True)), "ecmt", example=samples)
    expected = [(0.5, 0.5), (2, 2), (0.5, 0.25), (1, 0), (0.75, 0.125), (0, 0), (0.5, -0.125), (0.5, 0.5), (1, 1)]
    assert snn.thresholds == {site: Threshold(*pair) for site, pair in zip(BLOCK_SITES, expected, strict=True)}
    assert snn.calibration.samples == 0
    assert snn.simulate(samples, 2).outputs.isfinite().all()


def test_given_thresholds_repeat_a_calibration(block: Block, samples: torch.Tensor) -> None:
    first = transpike.convert(block, [samples], "ecmt", example=samples[:2])
    again = transpike.convert(block, first.thresholds, "ecmt", example=samples)
    assert again.thresholds == first.thresholds
    assert torch.equal(again.simulate(samples, 3).outputs, first.simulate(samples, 3).outputs)


def test_a_calibration_is_handed_over_whole(block: Block, samples: torch.Tensor) -> None:
    first = transpike.convert(block, [samples], "balanced")
    again = transpike.convert(block, first.calibration, "balanced", example=samples)
    assert first.calibration.frames and again.calibration == first.calibration
    assert torch.equal(again.simulate(samples, 1).outputs, first.simulate(samples, 1).outputs)
    with pytest.raises(ConfigError, match="example"):
        transpike.convert(block, first.calibration)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc1:input"), "missing fc1:input"),
        (lambda t: t.update(fc9=1.0), "unknown fc9"),
        (lambda t: (t.pop("attn:key"), t.update({"attn:kye": 1.0})), "missing attn:key; unknown attn:kye"),
        (lambda t: t.clear(), "9 sites: missing"),
    ],
)
def test_missing_and_unknown_sites_are_named(decided: transpike.Plan, change: Any, message: str) -> None:
    thresholds: dict[str, Any] = dict.fromkeys(BLOCK_SITES, 1.0)
    change(thresholds)
    with pytest.raises(ConfigError, match=message):
        thresholds_given(decided, thresholds)


BAD_THRESHOLDS = [None, "a", "ab", math.nan, math.inf, (1.0,), (1.0, 2.0, 3.0), (1.0, None), {"positive": 1.0}]


@pytest.mark.parametrize("bad", [*BAD_THRESHOLDS, torch.tensor(0.5), torch.tensor([0.5, 0.5])], ids=str)
def test_what_is_not_a_threshold_names_its_site(decided: transpike.Plan, bad: Any) -> None:
    thresholds: dict[str, Any] = dict.fromkeys(BLOCK_SITES, 1.0)
    with pytest.raises(ConfigError, match="threshold of site attn:key must be one or two finite numbers"):
        thresholds_given(decided, {**thresholds, "attn:key": bad})


def test_convert_refuses_a_bad_threshold(block: Block, samples: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="missing head:input"):
        transpike.convert(block, dict.fromkeys(BLOCK_SITES[:-1], 1.0), "ecmt", example=samples)


@pytest.mark.parametrize("recipe", [balanced(), balanced(granularity="tensor"), ecmt(granularity="channel")])
def test_thresholds_alone_are_refused_where_the_recipe_finds_more(
    recipe: Recipe, block: Block, samples: torch.Tensor
) -> None:
    with pytest.raises(ConfigError, match=f"{recipe.name} also finds levels or scales .* pass all of snn.calibration"):
        transpike.convert(block, dict.fromkeys(BLOCK_SITES, 1.0), recipe, example=samples)
    levels = dataclasses.replace(balanced(granularity="tensor"), site_levels=dict.fromkeys(BLOCK_SITES, 3))
    snn = transpike.convert(block, dict.fromkeys(BLOCK_SITES, 1.0), levels, example=samples)
    assert {neuron.levels for neuron in snn.neurons.values()} == {3}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_inputs_that_are_not_finite_name_the_site(measure: Any, samples: torch.Tensor, bad: float, place: int) -> None:
    spoiled = samples.clone()
    spoiled[place * 11, 2, 3] = bad
    with pytest.raises(CalibrationError, match=r"site attn\.q:input saw NaN or infinity"):
        measure(spoiled.split(10))


def test_convert_refuses_nan_inputs(block: Block, samples: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match=r"site attn\.q:input saw NaN or infinity"):
        transpike.convert(block, [samples * math.nan])


@pytest.mark.parametrize("batches", [[], iter(()), ()], ids=["list", "iterator", "tuple"])
def test_no_samples(block: Block, batches: Any) -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        transpike.convert(block, batches)


def test_no_samples_beside_an_example(block: Block, samples: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        transpike.convert(block, [], example=samples)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_name_the_tensor(samples: torch.Tensor, bad: float) -> None:
    model = Block().double().eval()
    with torch.no_grad():
        model.fc1.weight[2, 3] = bad
    with pytest.raises(CheckpointError, match=r"fc1\.weight"):
        transpike.convert(model, [samples])


def test_nan_in_a_bias_and_a_buffer_are_found(samples: torch.Tensor) -> None:
    model = Block().double().eval()
    with torch.no_grad():
        model.attn.proj.bias[0] = math.nan
    model.register_buffer("mask", torch.full((2, 2), math.nan))
    with pytest.raises(CheckpointError) as caught:
        transpike.convert(model, [samples])
    assert "attn.proj.bias" in str(caught.value)
    assert "mask" in str(caught.value)


def test_masks_of_minus_infinity_are_no_fault(samples: torch.Tensor) -> None:
    model = Block().double().eval()
    model.register_buffer("attn_mask", torch.full((2, 2), -math.inf))
    assert transpike.convert(model, [samples]).plan.sites


def test_training_mode_is_refused(samples: torch.Tensor) -> None:
    with pytest.raises(CaptureError, match=r"training mode; call model\.eval\(\)"):
        transpike.convert(Block().double().train(), [samples])


def test_a_later_batch_of_another_shape_is_refused(measure: Any, samples: torch.Tensor) -> None:
    with pytest.raises(TranspikeError, match=r"shape \(20, 3, 6\), but the model takes \(batch, 4, 6\)"):
        measure([samples, samples[:, :3]])


def test_an_empty_first_batch_is_refused(block: Block, samples: torch.Tensor) -> None:
    with pytest.raises(TranspikeError):
        transpike.convert(block, [samples[:0], samples])


@pytest.mark.parametrize("bits", [0, -3, "8"])
def test_threshold_bits_must_make_sense(bits: Any) -> None:
    with pytest.raises(ConfigError, match="threshold_bits"):
        dataclasses.replace(recipe_named("ecmt"), threshold_bits=bits)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ConfigError, match="margin"):
        Maximum(margin)
