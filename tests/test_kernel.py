"""The compiled neuron against the eager one: same numbers, same counts."""

from __future__ import annotations

import logging

import pytest
import torch

import transpike
from transpike.errors import ConfigError, DataError
from transpike.neurons import (
    Differential,
    ExponentialDecay,
    Frame,
    Framed,
    MultiThreshold,
    Neuron,
    PublishedMultiThreshold,
    choose,
    compiled_once,
    compiled_trajectory,
    fire_once,
    fits,
    trajectory,
)
from transpike.neurons.kernel import WORTH_COMPILING, _passes, refusal, spreads_nan
from transpike.neurons.multi_threshold import _by_splitting, nearest_power_of_two
from transpike.types import Threshold

CPU = torch.device("cpu")
SYMMETRIC, LOPSIDED, ONE_SIDED = Threshold(1.5, 1.5), Threshold(0.8125, 0.171875), Threshold(0.75, 0.0)
NEGATIVE = Threshold(0.0, 0.625)
CASES: list[tuple[Neuron, tuple[Threshold, ...]]] = [
    (MultiThreshold(), (SYMMETRIC, LOPSIDED, ONE_SIDED, NEGATIVE)),
    (MultiThreshold(5, 0.5), (SYMMETRIC, LOPSIDED, ONE_SIDED, NEGATIVE)),
    (PublishedMultiThreshold(), (LOPSIDED,)),
    (Differential(), (SYMMETRIC, Threshold(0.3, 0.3), LOPSIDED)),
    (Differential(6, 0.75, pulses=3), (SYMMETRIC,)),
    (ExponentialDecay(4), (LOPSIDED,)),
    (ExponentialDecay(4, 0.7), (SYMMETRIC, ONE_SIDED)),
]
# A kernel takes seconds to compile, so what is beside a neuron (frame, counts, output) takes turns over the cases.
TURNS = [(*case, turn) for turn, case in enumerate((neuron, each) for neuron, all_ in CASES for each in all_)]


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if reason := refusal(CPU):
        pytest.skip(reason)


@pytest.mark.parametrize(("neuron", "threshold", "turn"), TURNS, ids=str)
def test_compiled_is_eager_bit_for_bit(neuron: Neuron, threshold: Threshold, turn: int) -> None:
    """Including ties, zeros and values far out of range, at a size that fills no vector register evenly; and NaN for
    what is not finite."""
    values = torch.randn(3, 1009, generator=torch.Generator().manual_seed(0)) * 2
    values[:, :40] = torch.arange(40) * 0.0625 - 1.25
    masks, dtype = ((True, None), (False, None), (False, torch.bfloat16))[turn % 3]
    eager = trajectory(neuron, values, threshold, masks=masks, dtype=dtype)
    compiled = compiled_trajectory(neuron, values, threshold, masks=masks, dtype=dtype)
    for one, other in zip(eager, compiled, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    for bad in (torch.nan, torch.inf, -torch.inf):
        values[1, 7] = bad
        out = compiled_trajectory(neuron, values, threshold, masks=masks, dtype=dtype)[0]
        assert out.isnan().nonzero().tolist()[0] == [1, 7]


@pytest.mark.parametrize(
    ("neuron", "threshold"), [(MultiThreshold(4), LOPSIDED), (Differential(4, 0.75, pulses=2), SYMMETRIC)], ids=str
)
def test_many_steps_are_several_passes(
    neuron: Neuron, threshold: Threshold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The membrane goes from one to the next through memory."""
    monkeypatch.setattr("transpike.neurons.kernel.STEPS_AT_ONCE", 2)
    _passes.cache_clear()
    values = torch.randn(5, 2, 3, 101, generator=torch.Generator().manual_seed(0))
    frame = Frame(scale=torch.linspace(0.5, 2, 303).reshape(1, 3, 101))
    for one in (neuron, Framed(neuron, frame)):  # type: ignore[arg-type]
        eager = trajectory(one, values, threshold, masks=True)
        with caplog.at_level(logging.INFO, "transpike"):
            compiled = compiled_trajectory(one, values, threshold, masks=True)
        assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))  # type: ignore[arg-type]
    said = [record.getMessage().partition(" for ")[2] for record in caplog.records]
    assert said == ["steps 1 to 2", "steps 3 to 4", "steps 5 to 5"] * 2


@pytest.mark.parametrize(("neuron", "threshold", "turn"), TURNS, ids=str)
def test_one_compiled_step_is_the_eager_one(neuron: Neuron, threshold: Threshold, turn: int) -> None:
    """For as many steps as one likes, by one kernel, in the memory of the first state; framed by column, by row and
    not at all, with and without counts."""
    if framed := turn % 3:
        scale = torch.linspace(0.5, 2, 303)
        scale = scale.reshape(1, 303) if framed == 1 else scale[:7].reshape(7, 1)
        neuron = Framed(neuron, Frame(scale=scale, shift=torch.ones(1, 303)))  # type: ignore[arg-type]
    values = torch.randn(4, 7, 303, generator=torch.Generator().manual_seed(0)) * 2
    count, state, kept = turn % 2 == 0, None, None
    for t in range(1, 5):
        kept, *eager = fire_once(neuron, kept, t, values[t - 1], threshold, count=count)
        before = state
        state, *compiled = compiled_once(neuron, state, t, values[t - 1], threshold, count=count)
        assert torch.equal(state, kept) and (before is None or before.data_ptr() == state.data_ptr())
        assert all(
            one is other is None or (one.dtype == other.dtype and torch.equal(one, other))
            for one, other in zip(eager, compiled, strict=True)
        )


def test_a_network_streams_the_same_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "for neurons alone")
    model, images = transpike.zoo.load_model("digits")[0], torch.rand(4, 1, 8, 8)
    snn = transpike.convert(model, [images], "balanced")
    eager, compiled = (snn.simulate(images, 3, mode="streaming", kernel=kernel) for kernel in ("eager", "compiled"))
    assert torch.equal(eager.outputs, compiled.outputs)
    assert eager.spikes.to_json() == compiled.spikes.to_json()
    assert (eager.kernel, compiled.kernel) == ("eager (as asked)", "compiled")
    stopped = [transpike.stop_early(snn, images, steps=3, threshold=0.5, kernel=k) for k in ("eager", "compiled")]
    assert torch.equal(stopped[0].outputs, stopped[1].outputs) and torch.equal(stopped[0].steps, stopped[1].steps)
    assert stopped[0].spikes.to_json() == stopped[1].spikes.to_json()


def test_more_kinds_of_tensors_than_the_compiler_expects() -> None:
    """One row or many, of two widths: three kinds, where one is allowed."""
    neuron, threshold = MultiThreshold(7, 0.9), Threshold(0.625, 0.375)
    with torch._dynamo.config.patch(recompile_limit=1):
        for dtype, size in ((torch.float32, 1), (torch.float32, 5), (torch.float64, 5)):
            values = torch.linspace(-1, 1, 2 * size, dtype=dtype).view(2, size)
            compiled = compiled_trajectory(neuron, values, threshold, masks=False)[0]
            assert torch.equal(compiled, trajectory(neuron, values, threshold)[0])


def test_a_network_gives_the_same_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "for neurons alone")
    model, images = transpike.zoo.load_model("digits")[0], torch.rand(4, 1, 8, 8)
    snn = transpike.convert(model, [images], "cascade")
    eager, compiled = (snn.simulate(images, 2, kernel=kernel) for kernel in ("eager", "compiled"))
    assert torch.equal(eager.outputs, compiled.outputs)
    assert eager.spikes.to_json() == compiled.spikes.to_json()
    assert (eager.kernel, compiled.kernel) == ("eager (as asked)", "compiled")
    assert snn.simulate(images, 2).kernel == "eager (too little work to compile)"


def test_what_is_chosen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto", WORTH_COMPILING, CPU) == "compiled"
    monkeypatch.setattr("transpike.neurons.kernel._refusal", lambda device: "there is no compiler")
    assert choose("auto", WORTH_COMPILING, CPU) == "eager (there is no compiler)"
    with pytest.raises(ConfigError, match="there is no compiler; use kernel='eager'"):
        choose("compiled", 1, CPU)
    with pytest.raises(ConfigError, match="kernel must be one of auto, compiled, eager"):
        choose("fast", 1, CPU)


def test_negative_thresholds_are_left_to_the_scan() -> None:
    assert fits(PublishedMultiThreshold(), LOPSIDED)
    assert not fits(PublishedMultiThreshold(), Threshold(0.5, -0.1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_site_of_what_is_not_finite_is_named(bad: float) -> None:
    assert spreads_nan(MultiThreshold, "cpu") and not spreads_nan(MultiThreshold, "cuda"), "bit patterns do not"
    assert not nearest_power_of_two(torch.tensor([torch.nan])).isnan(), "they do not"
    model, images = transpike.zoo.load_model("digits")[0], torch.rand(4, 1, 8, 8)
    snn = transpike.convert(model, [images], "cascade")
    images[2, 0, 3, 3] = bad
    for kernel in ("compiled", "eager"):
        for mode in ("folded", "streaming"):
            with pytest.raises(DataError, match=r"site blocks\.0\.attn\.qkv:input received NaN or infinity"):
                snn.simulate(images, 2, kernel=kernel, mode=mode)
        with pytest.raises(DataError, match=r"site blocks\.0\.attn\.qkv:input received NaN or infinity"):
            transpike.stop_early(snn, images, steps=2, threshold=0.5, kernel=kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_splitting_is_the_nearest_power_of_two_for_every_mantissa(dtype: torch.dtype) -> None:
    mantissas = (torch.arange(1 << 23, dtype=torch.int32) | 0x3F800000).view(torch.float32).to(dtype)
    ties = torch.tensor([1.5, 1.5 - 2**-52, 1.5 + 2**-52, 2 - 2**-52, 1 + 2**-52], dtype=torch.float64).to(dtype)
    for exponent in (-30, -1, 0):
        values = torch.cat([mantissas, ties]) * 2.0**exponent
        assert torch.equal(_by_splitting(values), nearest_power_of_two(values))
    assert _by_splitting(torch.zeros(2, dtype=dtype)).tolist() == [0, 0]
