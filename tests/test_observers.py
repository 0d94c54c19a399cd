"""Histograms against sorted lists, and the rules that make thresholds of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import quantile
from transpike.errors import ConfigError
from transpike.observers import RANGE_RULES, Histogram, Maximum, Percentile, histogram
from transpike.observers.rounding import round_up
from transpike.types import Threshold

few = settings(derandomize=True, max_examples=30, deadline=None, database=None)
FRACTIONS = (0.001, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999, 0.9999)
TOLERANCE = 2.0**-10 * (1 + 1e-6)  # half a bin; the rounding of a float64 to float32 comes on top


def randn(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SAMPLES = {
    "normal": randn(5000),
    "positive": randn(5000).abs() + 0.01,
    "negative": -randn(5000).exp(),
    "zeros": torch.zeros(100),
    "mostly zeros": torch.cat([torch.zeros(4000), randn(1000)]),
    "negative zeros": -torch.zeros(50),
    "heavy tails": torch.tan(randn(5001).clamp(-1.57, 1.57)) * randn(5001, 1).exp(),
    "one value": torch.full((77,), 0.3),
    "one number": torch.tensor([-2.5]),
    "powers of two": 2.0 ** torch.arange(-60, 60).double(),
    "bfloat16": randn(3000).bfloat16(),
    "float16": randn(3000).half(),
}


def seen(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        assert histogram.update(part)
    return histogram


def same(one: Histogram, other: Histogram) -> bool:
    extremes = (one.minimum, one.maximum) == (other.minimum, other.maximum)
    return extremes and torch.equal(one.counts, other.counts)


@pytest.mark.parametrize("name", SAMPLES)
def test_quantiles_are_exact_order_statistics_to_half_a_bin(name: str) -> None:
    values = SAMPLES[name]
    histogram, numbers = seen(values), values.double().tolist()
    assert histogram.count == len(numbers)
    for fraction in FRACTIONS:
        assert histogram.quantile(fraction) == pytest.approx(quantile(numbers, fraction), rel=TOLERANCE, abs=0)
        magnitudes = [abs(number) for number in numbers]
        assert histogram.magnitude_quantile(fraction) == pytest.approx(
            quantile(magnitudes, fraction), rel=TOLERANCE, abs=0
        )


@pytest.mark.parametrize("name", SAMPLES)
def test_extremes_are_exact(name: str) -> None:
    numbers = SAMPLES[name].double().tolist()
    histogram = seen(SAMPLES[name])
    assert histogram.quantile(0) == histogram.minimum == min(numbers)
    assert histogram.quantile(1) == histogram.maximum == max(numbers)
    assert histogram.magnitude_quantile(1) == max(map(abs, numbers))


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, allow_subnormal=False, width=32), min_size=1, max_size=40),
    st.floats(1e-6, 1 - 1e-6),
)
@few
def test_quantile_of_any_list(numbers: list[float], fraction: float) -> None:
    histogram = seen(torch.tensor(numbers))
    assert histogram.quantile(fraction) == pytest.approx(quantile(numbers, fraction), rel=TOLERANCE, abs=0)


@given(st.lists(st.integers(0, 5000), max_size=3), st.integers(0, 3))
@few
def test_split_and_order_change_nothing(cuts: list[int], seed: int) -> None:
    values = SAMPLES["normal"].float()
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    parts = [part for part in torch.tensor_split(shuffled, sorted(cuts)) if len(part)]
    assert same(seen(values), seen(*parts))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seen(SAMPLES["normal"].reshape(50, 100))
    monkeypatch.setattr(histogram, "CHUNK", 1300)
    assert same(whole, seen(SAMPLES["normal"].reshape(50, 100)))


def test_merge_is_the_union() -> None:
    one, other = SAMPLES["heavy tails"], SAMPLES["mostly zeros"]
    merged, right = seen(one), seen(other)
    before = right.counts.clone()
    merged.merge(right)
    assert same(merged, seen(one, other))
    assert torch.equal(right.counts, before)
    with_empty = seen(one)
    with_empty.merge(Histogram())
    assert same(with_empty, seen(one))
    assert not same(with_empty, merged), "the comparison itself can tell two histograms apart"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_what_is_not_finite_is_refused_and_not_counted(bad: float, place: int) -> None:
    histogram, values = seen(torch.tensor([1.0, 2.0])), torch.ones(40)
    values[place] = bad
    assert not histogram.update(values)
    assert same(histogram, seen(torch.tensor([1.0, 2.0])))


def test_update_does_not_touch_its_input() -> None:
    values = randn(100).float().requires_grad_()
    before = values.detach().clone()
    seen(values)
    assert torch.equal(values.detach(), before)
    assert values.grad_fn is None


# --- rules -----------------------------------------------------------------------------------------------------------


def test_percentile_per_sign_and_symmetric() -> None:
    values = torch.cat([randn(3000).abs() * 2, -randn(1000).abs() / 4])
    histogram, numbers = seen(values), values.tolist()
    threshold = Percentile(0.99).threshold(histogram)
    assert threshold.positive == pytest.approx(quantile(numbers, 0.99), rel=TOLERANCE)
    assert threshold.negative == pytest.approx(-quantile(numbers, 1 - 0.99), rel=TOLERANCE)
    both = Percentile(0.99, symmetric=True).threshold(histogram)
    assert both.positive == both.negative == pytest.approx(quantile(list(map(abs, numbers)), 0.99), rel=TOLERANCE)


def test_percentile_one_is_the_maximum() -> None:
    histogram = seen(SAMPLES["normal"])
    top, bottom = SAMPLES["normal"].max().item(), SAMPLES["normal"].min().item()
    assert Percentile(1).threshold(histogram) == Threshold(top, -bottom)
    assert Percentile(1, symmetric=True).threshold(histogram) == Threshold(max(top, -bottom), max(top, -bottom))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, 99, math.nan, math.inf])
def test_a_percentile_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="percentile must be in"):
        Percentile(fraction)


def test_maximum() -> None:
    histogram = seen(torch.tensor([-3.0, 0.5, 2.0]))
    assert Maximum().threshold(histogram) == Threshold(3.0, 3.0)
    assert Maximum(0.5, symmetric=False).threshold(histogram) == Threshold(1.0, 1.5)
    assert Maximum(symmetric=False).threshold(seen(torch.tensor([1.0, 4.0]))) == Threshold(4.0, 0.0)
    assert Maximum(symmetric=False).threshold(seen(torch.tensor([-1.0]))) == Threshold(0.0, 1.0)


def test_rules_are_registered_under_their_names() -> None:
    assert {name: kind.name for name, kind in RANGE_RULES.items()} == {name: name for name in RANGE_RULES}


# --- rounding thresholds ---------------------------------------------------------------------------------------------


def significant_bits(value: float) -> int:
    numerator = abs(value).as_integer_ratio()[0]
    return numerator.bit_length() - (numerator & -numerator).bit_length() + 1 if numerator else 0


@given(st.floats(1e-30, 1e30), st.integers(1, 24))
@few
def test_round_up(value: float, bits: int) -> None:
    rounded = round_up(value, bits)
    assert rounded >= value
    assert significant_bits(rounded) <= bits
    assert (rounded - value) / value < 2.0 ** (1 - bits)
    assert round_up(rounded, bits) == rounded
    assert round_up(-value, bits) == -rounded
    below = math.nextafter(rounded, 0) if rounded > value else value
    assert round_up(below, bits) == rounded, "the smallest such number, and no larger one"


@pytest.mark.parametrize("exponent", [-20, 0, 20])
def test_round_up_at_powers_of_two(exponent: int) -> None:
    assert round_up(2.0**exponent, 8) == 2.0**exponent
    assert round_up(math.nextafter(2.0**exponent, math.inf), 8) == 2.0**exponent * (1 + 2**-7)
    assert round_up(math.nextafter(2.0**exponent, 0), 8) == 2.0**exponent


def test_round_up_leaves_zero_and_unrounded_values() -> None:
    assert round_up(0.0, 8) == 0.0
    assert round_up(0.1, None) == 0.1
    assert torch.tensor(round_up(0.1, 8)).bfloat16().item() == round_up(0.1, 8)
