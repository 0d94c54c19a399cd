"""Frames: thresholds that differ between the neurons of a site, and corrections around them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import transpike
from transpike.codecs.bundle import CONFIG, FRAMES
from transpike.errors import ConfigError
from transpike.neurons import (
    Differential,
    Frame,
    Framed,
    MultiThreshold,
    Neuron,
    by_ladder,
    compiled_once,
    compiled_trajectory,
    fits,
    plain,
    spikes_in,
    trajectory,
)
from transpike.types import Threshold

NEURONS = [MultiThreshold(4, 0.5), Differential(4, 0.75), Differential(5, 0.75, 3)]
THETA = Threshold(1.5, 1.0)


def framing(seed: int = 0) -> Frame:
    torch.manual_seed(seed)
    return Frame(
        scale=torch.rand(1, 3, 1) + 0.5,
        offset=torch.randn(1, 1, 4) / 4,
        gain=torch.rand(1, 3, 4) + 0.5,
        shift=torch.randn(1, 3, 1),
    )


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_every_neuron_stands_alone(neuron: Neuron) -> None:
    """Twin: each neuron by itself, its threshold scaled, its input and output corrected by hand."""
    frame, means = framing(), torch.randn(5, 2, 3, 4, dtype=torch.float64).cumsum(0) / 3
    out, fired, _ = trajectory(Framed(neuron, frame), means, THETA, masks=True)
    parts = {name: tensor.expand(1, 3, 4)[0] for name, tensor in frame.tensors().items()}
    for i in range(3):
        for j in range(4):
            s, o, g, h = (float(parts[name][i, j]) for name in ("scale", "offset", "gain", "shift"))
            threshold = Threshold(THETA.positive * s, THETA.negative * s)
            own, own_fired, _ = trajectory(neuron, means[:, :, i, j] + o * s, threshold, masks=True)
            assert torch.allclose(out[:, :, i, j], own * g + h, atol=1e-6)
            assert torch.equal(fired[:, :, i, j], own_fired)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_steps_are_the_trajectory(neuron: Neuron) -> None:
    placed, means = Framed(neuron, framing()), torch.randn(4, 2, 3, 4)
    out, fired, _ = trajectory(placed, means, THETA, masks=True)
    state, emitted = None, 0.0
    for t in range(4):
        trains = []
        for _ in range(placed.pulses):
            state, mean_out, spikes = placed.step(state, t + 1, means[t], THETA)
            trains.append(spikes)
        emitted = emitted + torch.stack(trains).sum(0)
        assert torch.equal(mean_out, out[t]) and torch.equal(spikes_in(trains), fired[t])
        carried = emitted / (t + 1) if placed.code == "rate" else emitted
        assert torch.allclose(carried + placed.frame.shift, mean_out, atol=1e-5)  # charge is conserved


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["powers of two", "any"])
def test_compiled_equals_eager(neuron: Neuron, exact: bool) -> None:
    frame = Frame(scale=torch.tensor([0.5, 1, 4]).reshape(1, 3, 1).bfloat16()) if exact else framing()
    means = torch.randn(3, 5, 3, 4)
    eager = trajectory(Framed(neuron, frame), means, THETA, masks=True)
    fast = compiled_trajectory(Framed(neuron, frame), means, THETA, masks=True)
    assert all(torch.equal(a, b) for a, b in zip(eager, fast, strict=True))


@pytest.mark.parametrize("scale", [(3, 1, 4), (3, 5, 4)], ids=str)
def test_compiled_equals_eager_whatever_axis_has_no_thresholds(scale: tuple[int, ...]) -> None:
    """Tokens before samples, as `nn.MultiheadAttention` has them; and no axis that all thresholds share."""
    exponents = torch.randint(-2, 3, scale, generator=torch.Generator().manual_seed(8))
    placed = Framed(NEURONS[2], Frame(scale=torch.exp2(exponents.float())))
    means = torch.randn(2, 3, 5, 4)
    theta = Threshold(1.5, 1.5)
    eager = trajectory(placed, means, theta, masks=True)
    fast = compiled_trajectory(placed, means, theta, masks=True)
    assert all(torch.equal(a, b) for a, b in zip(eager, fast, strict=True))
    state = None
    for t in range(2):
        state, out, spikes = compiled_once(placed, state, t + 1, means[t], theta, count=True)
        assert torch.equal(out, eager[0][t]) and torch.equal(spikes, eager[1][t])


def test_what_is_in_the_neurons_own_units_is_not_passed_on() -> None:
    """`at_once` of the neuron would leave the frame out, silently."""
    own = Differential(3, pulses=2)
    placed = Framed(own, Frame(scale=torch.tensor([[1.0, 2.0]])))
    assert (placed.name, placed.code, placed.levels, placed.pulses, placed.cutoff) == ("differential", "sum", 3, 2, 0.5)
    for name in ("at_once", "level", "parameters", "stairs", "firings"):
        assert hasattr(own, name)
        with pytest.raises(AttributeError, match=f"a neuron in a frame has no {name}"):
            getattr(placed, name)
    assert fits(placed, THETA)  # type: ignore[arg-type]
    assert copy.deepcopy(placed).neuron == own


def test_powers_of_two_share_one_ladder() -> None:
    frame = Frame(scale=torch.tensor([[1.0, 4.0]]).bfloat16())
    placed = Framed(Differential(3), frame)
    assert frame.octaves == (0, 2)
    found = sorted(a for a in placed.amplitudes(Threshold(1.0, 1.0)) if a > 0)
    assert found == [0.25, 0.5, 1.0, 2.0, 4.0]
    values = torch.randn(50, 2) * 3
    assert set(placed.quantise(values, Threshold(1.0, 1.0)).unique().tolist()) <= {*found, *(-a for a in found), 0.0}
    assert torch.equal(
        placed.quantise(values, Threshold(1.0, 1.0))[:, 1],
        Differential(3).quantise(values[:, 1], Threshold(4.0, 4.0)),
    )
    assert plain(placed) == Differential(3)


def test_a_neuron_needs_the_levels_up_to_the_sites_largest() -> None:
    scale = torch.tensor([[1.0, 1.0, 4.0, 1024.0]]).bfloat16()
    found = by_ladder(Framed(Differential(6), Frame(scale=scale)))
    assert found == ((Differential(6), 0.5), (Differential(4), 0.25), (Differential(1), 0.25))
    assert by_ladder(Framed(Differential(6), Frame(scale=1 / scale))) == ((Differential(6), 1.0),)
    assert by_ladder(Differential(6)) == ((Differential(6), 1.0),)


def test_other_scales_have_no_common_ladder() -> None:
    placed = Framed(Differential(3), Frame(scale=torch.tensor([[1.0, 3.0]])))
    with pytest.raises(ConfigError, match="not powers of two"):
        placed.amplitudes(Threshold(1.0, 1.0))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    from transpike.data import open_data

    samples = open_data("digits", split="test")
    return torch.stack([samples.fetch(i)[0] for i in range(32)])


@pytest.fixture(scope="module")
def snn(images: torch.Tensor) -> transpike.SpikingModel:
    return transpike.convert(transpike.zoo.load_model("digits")[0], [images], "balanced")


def test_a_saved_network_keeps_them(snn: transpike.SpikingModel, images: torch.Tensor, tmp_path: Path) -> None:
    assert snn.calibration.frames
    folder = snn.save_pretrained(tmp_path / "network")
    again = transpike.load(folder)
    assert torch.equal(again.simulate(images, 2).outputs, snn.simulate(images, 2).outputs)
    assert '"format_version": 2' in (folder / CONFIG).read_text()


@pytest.mark.parametrize("case", ["missing", "another site", "another shape", "zero", "nan"])
def test_damaged_frames_are_refused(snn: transpike.SpikingModel, tmp_path: Path, case: str) -> None:
    folder = snn.save_pretrained(tmp_path / "network")
    path = folder / FRAMES
    tensors = safetensors.torch.load_file(path)
    key = next(iter(tensors))
    if case == "missing":
        path.unlink()
    else:
        before = transpike.codecs.bundle._sha256(path)
        changes = {"another site": 1.0, "another shape": 1.0, "zero": 0.0, "nan": float("nan")}
        changed = tensors[key][..., : 2 if case == "another shape" else None] * changes[case]
        tensors |= {"nowhere/scale" if case == "another site" else key: changed.contiguous()}
        safetensors.torch.save_file(tensors, path)
        config = (folder / CONFIG).read_text().replace(before, transpike.codecs.bundle._sha256(path))
        (folder / CONFIG).write_text(config)
    with pytest.raises(ConfigError, match="lacks frames" if case == "missing" else "no sound tensor"):
        transpike.load(folder)


def test_streaming_folded_and_given_another_frame(snn: transpike.SpikingModel, images: torch.Tensor) -> None:
    folded, streamed = (snn.simulate(images, 3, mode=mode) for mode in ("folded", "streaming"))
    assert torch.allclose(folded.outputs, streamed.outputs, atol=1e-4)
    plainer = replace(snn.calibration, frames={})
    before = snn.calibration
    try:
        snn.calibration = plainer
        snn.place_neurons()
        assert not torch.equal(snn.simulate(images, 1).outputs[0], folded.outputs[0])
    finally:
        snn.calibration = before
        snn.place_neurons()
