"""Every neuron against its twin, and the laws all of them keep."""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import Membrane, digit_level, drives, each, nearest_level, one_of_a_window, published_level
from transpike.errors import ConfigError
from transpike.neurons import (
    NEURONS,
    ExponentialDecay,
    FewSpikes,
    MultiThreshold,
    Neuron,
    Parallel,
    PublishedMultiThreshold,
    advance,
    spikes_in,
    trajectory,
)
from transpike.neurons.differential import Differential
from transpike.types import Threshold

SYMMETRIC, LOPSIDED, DYADIC = Threshold(1.5, 1.5), Threshold(0.8125, 0.171875), Threshold(1.0, 0.25)
ONE_SIDED = (Threshold(0.75, 0.0), Threshold(0.0, 0.75))
SILENT = Threshold(0.0, 0.0)
MULTI = [MultiThreshold(), MultiThreshold(3, 0.5), MultiThreshold(1), MultiThreshold(5, 0.75), MultiThreshold(4, 2**-6)]
CASES = [
    *MULTI,
    PublishedMultiThreshold(),
    PublishedMultiThreshold(3),
    PublishedMultiThreshold(1),
    Differential(),
    Differential(3, 1.0),
    FewSpikes(),
    FewSpikes(3),
    Parallel(),
    Parallel(1),
]
KINDS = list(dict.fromkeys([*NEURONS.values(), Differential]))
RATE = [kind for kind in KINDS if kind.code == "rate"]
few = settings(derandomize=True, max_examples=40, deadline=None, database=None)


def twin(neuron: Neuron, threshold: Threshold):
    if isinstance(neuron, (MultiThreshold, Differential)):
        return partial(nearest_level, threshold=threshold, levels=neuron.levels, cutoff=neuron.cutoff)
    if isinstance(neuron, FewSpikes):
        return partial(digit_level, threshold=threshold, levels=neuron.levels)
    if isinstance(neuron, ExponentialDecay) and neuron.decay == 0.5:  # others: tests/test_mbe.py
        half = Threshold(threshold.positive / 2, threshold.negative / 2)
        return partial(digit_level, threshold=half, levels=neuron.levels)
    if isinstance(neuron, Parallel):
        return partial(one_of_a_window, threshold=threshold, levels=neuron.levels)
    assert isinstance(neuron, PublishedMultiThreshold), f"{neuron.name} has no twin in oracle.py"
    return partial(published_level, threshold=threshold, levels=neuron.levels)


def amplitudes(neuron: Neuron, threshold: Threshold) -> set[float]:
    if isinstance(neuron, Parallel):
        unit = max(threshold.positive, threshold.negative) / neuron.levels
        return {0.0} | ({unit} if threshold.positive > 0 else set()) | ({-unit} if threshold.negative > 0 else set())
    sign = 1 if isinstance(neuron, PublishedMultiThreshold) else -1
    ladder = [2.0 ** (sign * k) for k in range(neuron.levels)]
    return {0.0} | {threshold.positive * step for step in ladder} | {-threshold.negative * step for step in ladder}


def scale(neuron: Neuron, threshold: Threshold) -> float:
    """The largest level: inputs below it are in range."""
    return max(map(abs, amplitudes(neuron, threshold)))


def boundaries(neuron: Neuron, theta: float) -> list[float]:
    """Where the level changes: midpoints of neighbours and the smallest potential that fires."""
    if isinstance(neuron, FewSpikes):
        return [theta * (2.0**-k - 2.0**-neuron.levels) for k in range(neuron.levels)]
    if isinstance(neuron, Parallel):
        return [theta / neuron.levels / 2]
    if not isinstance(neuron, PublishedMultiThreshold):
        middles = [theta * 1.5 * 2.0**-k for k in range(1, neuron.levels)]
        return [*middles, neuron.cutoff * theta * 2.0 ** (1 - neuron.levels)]
    return [theta * (2.0**k - 0.5) for k in range(neuron.levels)]


def random_means(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [SYMMETRIC, LOPSIDED, DYADIC, *ONE_SIDED, SILENT], ids=str)
@pytest.mark.parametrize("neuron", CASES, ids=str)
def test_quantise_is_its_twin(neuron: Neuron, threshold: Threshold, dtype: torch.dtype) -> None:
    widest = max(scale(neuron, threshold), 1.0)
    random = random_means((150,), dtype=dtype) * widest
    small = random * 2.0**-neuron.levels
    edges = torch.tensor(
        [b for theta in (threshold.positive, threshold.negative) for b in boundaries(neuron, theta)], dtype=dtype
    )
    # Inverses are rounded up, and the published rule adds 1/2: exact at a boundary, but not one unit below it.
    slack = 16 * torch.finfo(dtype).eps
    near = [torch.nextafter(edges * (1 + way * slack), torch.full_like(edges, way * torch.inf)) for way in (-1, 1)]
    top = torch.finfo(dtype).max
    extreme = torch.tensor([0.0, 1e-30, top / 2, top, torch.finfo(dtype).tiny, 5e-324], dtype=dtype)
    potential = torch.cat([random, small, edges, *near, extreme])
    potential = torch.cat([potential, -potential])
    quantised = neuron.quantise(potential.clone(), threshold)
    expected = each(twin(neuron, threshold), potential)
    wrong = quantised != expected
    assert not wrong.any(), list(
        zip(potential[wrong].tolist(), quantised[wrong].tolist(), expected[wrong].tolist(), strict=True)
    )[:5]


@pytest.mark.parametrize("threshold", [Threshold(0.5, -0.125), Threshold(-0.25, 0.5)], ids=str)
def test_negative_thresholds_of_the_published_calibration(threshold: Threshold) -> None:
    neuron = PublishedMultiThreshold(4)
    potential = torch.cat([random_means((300,), dtype=torch.float64) * 4, torch.tensor([0.0, 0.25, -0.25, 0.0625])])
    assert torch.equal(neuron.quantise(potential, threshold), each(twin(neuron, threshold), potential))


@given(
    potential=st.floats(-1e6, 1e6, width=32),
    mantissas=st.tuples(st.integers(128, 255), st.integers(128, 255)),
    exponents=st.tuples(st.integers(-12, 4), st.integers(-12, 4)),
    levels=st.integers(1, 24),
)
@few
def test_any_potential_and_any_8_bit_threshold(
    potential: float, mantissas: tuple[int, int], exponents: tuple[int, int], levels: int
) -> None:
    threshold = Threshold(*(m * 2.0**e for m, e in zip(mantissas, exponents, strict=True)))
    neuron = MultiThreshold(levels)
    quantised = neuron.quantise(torch.tensor([potential]), threshold)
    assert quantised.item() == twin(neuron, threshold)(potential)


@given(theta=st.floats(1e-3, 1e3), potential=st.floats(-1e4, 1e4))
@few
def test_any_threshold_in_float64(theta: float, potential: float) -> None:
    """Thresholds of many bits round, so only "no level is clearly nearer" holds."""
    neuron, threshold = MultiThreshold(), Threshold(theta, theta / 3)
    quantised = neuron.quantise(torch.tensor([potential], dtype=torch.float64), threshold).item()
    expected = twin(neuron, threshold)(potential)
    smallest = (theta if potential > 0 else theta / 3) * 2.0**-7
    at_cutoff = abs(abs(potential) - smallest) <= 1e-12 * smallest
    assert at_cutoff or abs(quantised - potential) <= abs(expected - potential) * (1 + 1e-12)


@pytest.mark.parametrize("kind", NEURONS.values())
def test_every_neuron_has_a_twin_and_a_name(kind: type[Neuron]) -> None:
    neuron = kind()
    assert NEURONS[neuron.name] is kind
    assert kind in KINDS
    twin(neuron, SYMMETRIC)
    assert "levels" in {field.name for field in fields(neuron)}  # type: ignore[arg-type]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_is_repeated_steps(
    kind: type[Neuron], chunk: int, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["transpike.neurons.trajectory"], "CHUNK", chunk)
    neuron, means = kind(), random_means((5, 3, 10))
    out, fired, spoken = trajectory(neuron, means, LOPSIDED, masks=masks)
    assert (fired is not None) == (spoken is not None) == masks
    state = None
    for t in range(5):
        state, mean_out, trains = advance(neuron, state, t + 1, means[t], LOPSIDED)
        assert torch.equal(out[t], mean_out)
        if fired is not None and spoken is not None:
            assert torch.equal(fired[t], spikes_in(trains))
            assert torch.equal(spoken[t], state != 0)


@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_of_a_non_contiguous_input(kind: type[Neuron]) -> None:
    means = random_means((4, 6, 5))
    there, _, _ = trajectory(kind(), means.transpose(1, 2), LOPSIDED)
    here, _, _ = trajectory(kind(), means.transpose(1, 2).contiguous(), LOPSIDED)
    assert torch.equal(there, here)


@pytest.mark.parametrize("threshold", [DYADIC, Threshold(0.5, 0.5), *ONE_SIDED], ids=str)
@pytest.mark.parametrize("neuron", [kind() for kind in RATE] + [MultiThreshold(4, 0.5)], ids=str)
def test_charge_is_conserved_exactly(neuron: Neuron, threshold: Threshold) -> None:
    """S(t) + v(t) = t M_in(t), with v from the membrane form: nothing is lost, nothing invented.

    On multiples of 2^-10 every operation is exact in float64.
    """
    arriving = (random_means((9, 200), dtype=torch.float64) * 1024).round() / 1024
    membrane = Membrane(lambda v: neuron.quantise(v, threshold))
    state, emitted_sum, arrived = None, torch.zeros(200, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)
    for drive in arriving:
        arrived = arrived + drive
        # M(t) = sum / t would round; as step 1, t M(t) is the sum itself.
        state, mean_out, emitted = neuron.step(state, 1, arrived, threshold)
        assert torch.equal(emitted, membrane(drive))
        emitted_sum = emitted_sum + emitted
        assert torch.equal(state, emitted_sum)
        assert torch.equal(mean_out, emitted_sum)
        assert torch.equal(emitted_sum + membrane.v, arrived)


@pytest.mark.parametrize("neuron", [kind() for kind in RATE], ids=str)
def test_running_means_are_the_membrane_form(neuron: Neuron) -> None:
    """x(t) = t M(t) - (t-1) M(t-1); constant dyadic input, so that t M is exact."""
    mean_in = (random_means((300,), dtype=torch.float64) * 256).round() / 256
    means = mean_in.expand(12, -1)
    membrane = Membrane(lambda v: neuron.quantise(v, DYADIC))
    out, fired, spoken = trajectory(neuron, means, DYADIC, masks=True)
    assert fired is not None and spoken is not None
    total = torch.zeros_like(mean_in)
    for t, drive in enumerate(drives(means)):
        emitted = membrane(drive)
        total = total + emitted
        assert torch.equal(fired[t], emitted != 0)
        assert torch.equal(spoken[t], total != 0)
        assert torch.equal(out[t], total / (t + 1))
        assert torch.equal(total + membrane.v, (t + 1) * mean_in)


def test_differential_keeps_what_it_has_not_said() -> None:
    """R(t) + (m(t) - s(t)) = M_in(t), for any trajectory of multiples of 2^-10; M_out is the sum of all corrections."""
    means = (random_means((9, 300), dtype=torch.float64) * 1024).round() / 1024
    neuron, state, total = Differential(), None, torch.zeros(300, dtype=torch.float64)
    for t, mean_in in enumerate(means, start=1):
        potential = mean_in - total
        state, mean_out, emitted = neuron.step(state, t, mean_in, DYADIC)
        assert torch.equal(emitted, neuron.quantise(potential, DYADIC))
        total = total + emitted
        assert torch.equal(state, total)
        assert torch.equal(mean_out, total)
        assert torch.equal(total + (potential - emitted), mean_in)


@pytest.mark.parametrize("neuron", [Differential(), Differential(10), Differential(6, 1.0)], ids=str)
def test_differential_gains_a_factor_of_three_a_step(neuron: Differential) -> None:
    mean_in = random_means((400,), dtype=torch.float64).clamp(-1.5, 1.5)
    floor = neuron.cutoff * SYMMETRIC.positive * 2.0 ** (1 - neuron.levels)
    out, fired, _ = trajectory(neuron, mean_in.expand(9, -1), SYMMETRIC, masks=True)
    assert fired is not None
    for t in range(9):
        allowed = torch.maximum(mean_in.abs() / 3.0 ** (t + 1), torch.tensor(floor))
        assert ((out[t] - mean_in).abs() <= allowed * (1 + 1e-12)).all()
    assert not fired[8].any(), "a neuron that is right falls silent"


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_few_spikes_are_the_binary_digits(levels: int) -> None:
    """Within one step: the expansion of the value rounded to K digits, a spike for each digit that is 1."""
    smallest = SYMMETRIC.positive * 2.0 ** (1 - levels)
    values = torch.linspace(-1, 1, 4001, dtype=torch.float64) * (2 * SYMMETRIC.positive - smallest)
    values = values[((values / smallest) % 1 - 0.5).abs() > 1e-6]  # no ties
    out, fired, _ = trajectory(FewSpikes(levels), values[None], SYMMETRIC, masks=True)
    digits = (values.abs() / smallest + 0.5).floor()
    assert torch.equal(out[0], digits * smallest * values.sign())
    assert fired is not None and fired[0].tolist() == [int(number).bit_count() for number in digits.tolist()]


def test_integrate_and_fire_from_half_a_threshold_is_the_closed_form() -> None:
    """QCFS: on a constant input M_out(T) = theta/T clip(floor(T x/theta + 1/2), 0, T)."""
    values = torch.linspace(-0.5, 2.0, 997, dtype=torch.float64)
    out, fired, _ = trajectory(MultiThreshold(1, 0.5), values.expand(16, -1), Threshold(1.0, 0.0), masks=True)
    assert fired is not None
    for steps in (1, 2, 4, 8, 16):
        closed = (steps * values + 0.5).floor().clamp(0, steps) / steps
        assert torch.equal(out[steps - 1], closed)
        assert torch.equal(fired[:steps].sum(0) / steps, closed)


@pytest.mark.parametrize("steps", [1, 3, 8, 32])
def test_a_window_is_integrate_and_fire_whatever_the_order_of_its_inputs(steps: int) -> None:
    """The closed form, T firings one by one, and T steps of integrate-and-fire on the mean; for inputs in any order, a
    membrane that has them all before it fires."""
    drive = random_means((steps, 500), dtype=torch.float64) + 0.6
    mean, threshold = drive.mean(0), Threshold(1.0, 0.0)
    closed = (steps * mean + 0.5).floor().clamp(0, steps) / steps
    out, spikes, _ = trajectory(Parallel(steps), mean[None], threshold, masks=True)
    assert spikes is not None
    torch.testing.assert_close(out[0], closed)
    assert torch.equal(spikes[0].double(), (steps * closed).round())
    _, one_by_one, trains = advance(Parallel(steps), None, 1, mean, threshold)
    assert torch.equal(spikes_in(trains), spikes[0])
    torch.testing.assert_close(one_by_one, closed)
    assert all(bool((after <= before).all()) for before, after in zip(trains, trains[1:], strict=False)), "sorted"
    sequential, _, _ = trajectory(MultiThreshold(1, 0.5), mean.expand(steps, -1), threshold)
    torch.testing.assert_close(sequential[-1], closed)
    membrane, count = 0.5 + drive[torch.randperm(steps)].sum(0), torch.zeros(500, dtype=torch.float64)
    for _ in range(steps):
        fires = (membrane >= 1).double()
        membrane, count = membrane - fires, count + fires
    torch.testing.assert_close(count / steps, closed)


@pytest.mark.parametrize("threshold", [Threshold(1.0, 1.0), Threshold(1.0, 0.3), Threshold(0.0, 1.0)], ids=str)
def test_a_second_bank_is_the_first_with_the_other_sign(threshold: Threshold) -> None:
    values = random_means((500,), dtype=torch.float64)
    out, spikes, _ = trajectory(Parallel(4), values[None], threshold, masks=True)
    expected = (4 * values.abs() + 0.5).floor().clamp(0, 4) * values.sign()
    expected = expected.clamp(-4, 4 if threshold.positive else 0)
    assert torch.equal(out[0] * 4, expected) and torch.equal(spikes[0].double(), expected.abs())  # type: ignore[index]
    assert torch.equal(spikes_in(advance(Parallel(4), None, 1, values, threshold)[2]), spikes[0])  # type: ignore[index]


@pytest.mark.parametrize("threshold", [LOPSIDED, SYMMETRIC, *ONE_SIDED], ids=str)
@pytest.mark.parametrize("neuron", CASES, ids=str)
def test_emitted_amplitudes_are_the_levels(neuron: Neuron, threshold: Threshold) -> None:
    means = random_means((6, 400)) * scale(neuron, threshold) / 2
    state, seen = None, set()
    for t in range(6):
        state, _, emitted = neuron.step(state, t + 1, means[t], threshold)
        seen |= set(emitted.tolist())
        assert torch.equal(emitted, emitted.bfloat16().float()), "8-bit thresholds make every level exact in bfloat16"
    assert seen <= amplitudes(neuron, threshold)
    assert len(seen) > 1


@pytest.mark.parametrize("threshold", ONE_SIDED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sign_without_levels_never_fires(kind: type[Neuron], threshold: Threshold) -> None:
    out, fired, _ = trajectory(kind(), random_means((5, 300)) * 3, threshold, masks=True)
    sign = 1 if threshold.positive else -1
    assert fired is not None and fired.any()
    assert (sign * out >= 0).all()
    assert not trajectory(kind(), random_means((5, 300)), SILENT, masks=True)[1].any()  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_state_is_float32_at_least(kind: type[Neuron], dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    state = None
    for t in range(3):
        state, mean_out, emitted = kind().step(state, t + 1, random_means((8,), dtype=dtype), SYMMETRIC)
        assert (state.dtype, mean_out.dtype, emitted.dtype) == (wide,) * 3
    assert trajectory(kind(), random_means((3, 8), dtype=dtype), SYMMETRIC)[0].dtype is wide


@pytest.mark.parametrize("threshold", [LOPSIDED, SYMMETRIC], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_not_changed(kind: type[Neuron], threshold: Threshold) -> None:
    means = random_means((4, 50), dtype=torch.float64)
    before = means.clone()
    state = None
    for t in range(4):
        old = None if state is None else (state, state.clone())
        state, mean_out, emitted = kind().step(state, t + 1, means[t], threshold)
        assert old is None or torch.equal(*old), "the state handed in was changed"
        emitted.fill_(7.0)  # whoever holds the spikes must not hold the state
        assert not (state == 7.0).any()
        assert not (mean_out == 7.0).any()
    trajectory(kind(), means, threshold, masks=True)
    kind().quantise(means[0], threshold)
    assert torch.equal(means, before)


@pytest.mark.parametrize("neuron", [*(kind() for kind in RATE), MultiThreshold(8, 0.5)], ids=str)
def test_the_error_falls_like_one_over_t(neuron: Neuron) -> None:
    """Constant input in range: the residual potential stays bounded, so |M_out(T) - M_in| is of order 1/T."""
    top = 4 * SYMMETRIC.positive if isinstance(neuron, PublishedMultiThreshold) else SYMMETRIC.positive
    mean_in = (random_means((400,), dtype=torch.float64) * top / 2).clamp(-top, top)
    out, _, _ = trajectory(neuron, mean_in.expand(256, -1), SYMMETRIC)
    steps = np.array([2, 4, 8, 16, 32, 64, 128, 256])
    errors = [(out[t - 1] - mean_in).abs().mean().item() for t in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -1.15 < slope < -0.85, (slope, errors)


@pytest.mark.parametrize("levels", [0, -1, 25, 2.0, "8", None])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_levels_are_refused(kind: type[Neuron], levels: object) -> None:
    levels = 256 if (kind, levels) == (Parallel, 25) else levels
    with pytest.raises(ConfigError, match="levels must be"):
        kind(levels=levels)  # type: ignore[call-arg]


@pytest.mark.parametrize("cutoff", [0, -0.5, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [MultiThreshold, Differential])
def test_a_bad_cutoff_is_refused(kind: type[MultiThreshold], cutoff: float) -> None:
    with pytest.raises(ConfigError, match="cutoff must be"):
        kind(8, cutoff)
