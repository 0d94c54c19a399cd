"""A network at rest: steps in which nobody would fire do not run, and no number differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import transpike
from transpike import _simulate
from transpike._memory import need
from transpike._rest import Rest, can_rest
from transpike.measure import margins
from transpike.neurons import Differential, FewSpikes, Frame, Framed, Neuron, fire_once, trajectory
from transpike.recipes import RECIPES
from transpike.types import Threshold

STEPS = 6


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def steps_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many steps ran since it was asked last."""
    ran = 0

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal ran
        ran += 1
        return run_body(*arguments, **options)

    def since() -> int:
        nonlocal ran
        before, ran = ran, 0
        return before

    run_body = _simulate.run_body
    monkeypatch.setattr(_simulate, "run_body", counted)
    return since


def converted(recipe: str, images: torch.Tensor, **options: Any) -> transpike.SpikingModel:
    return transpike.convert(transpike.zoo.load_model("digits")[0], [images], RECIPES[recipe](**options))


@pytest.mark.parametrize(
    ("recipe", "options", "brighter", "rests", "kernel"),
    [
        ("balanced", {}, 1, (1, 1), "eager"),
        ("balanced", {}, 1, (1, 1), "compiled"),
        ("cascade", {"pulses": 2, "head": "analog"}, 1, (2, 5), "eager"),
        ("cascade", {"pulses": 2}, 8, (2, 5), "compiled"),
        ("differential", {}, 1, (2, STEPS), "compiled"),
        ("ecmt", {}, 1, (STEPS, STEPS), "eager"),
    ],
    ids=str,
)
def test_no_number_differs_from_running_all_steps(
    recipe: str,
    options: dict[str, Any],
    brighter: float,
    rests: tuple[int, int],
    kernel: str,
    images: torch.Tensor,
    steps_run: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snn, inputs = converted(recipe, images, **options), images[:5] * brighter
    how: dict[str, Any] = {"mode": "streaming", "kernel": kernel}
    steps_run()
    run, uncounted, ran = (
        snn.simulate(inputs, STEPS, **how),
        snn.simulate(inputs, STEPS, count=False, **how),
        steps_run(),
    )
    monkeypatch.setattr(_simulate, "can_rest", lambda model: False)
    whole = snn.simulate(inputs, STEPS, **how)
    assert steps_run() == STEPS
    assert 2 * rests[0] <= ran <= 2 * rests[1]
    assert torch.equal(run.outputs, whole.outputs) and torch.equal(uncounted.outputs, whole.outputs)
    assert run.spikes.to_json() == whole.spikes.to_json()
    assert np.array_equal(run.spikes.by_sample, whole.spikes.by_sample)  # type: ignore[arg-type]


@pytest.mark.parametrize("negative", [1.0, 0.625, 0.0])
@pytest.mark.parametrize(
    "neuron",
    [
        Differential(6, 0.5),
        Differential(6, 0.5, 2),
        Framed(Differential(6, 0.75), Frame(scale=torch.tensor([1.0, 2.0]))),
        FewSpikes(2),
    ],
    ids=["differential", "cascade", "framed", "few-spikes"],
)
def test_rest_is_when_the_next_step_is_silent(neuron: Neuron, negative: float) -> None:
    """Twin: run every neuron by itself until it falls silent, for good."""
    threshold, means = Threshold(1.0, negative), torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
    means = means if negative else means.abs()
    state, said = None, []
    for t in range(1, 12):
        rest = Rest(True)
        state, _, spikes = fire_once(neuron, state, t, means, threshold, count=True)
        rest.ask(fire_once, neuron, state, t, means, threshold, count=True)
        assert spikes is not None
        said.append((bool(spikes.any()), rest.holds))
    fired, rests = map(list, zip(*said, strict=True))
    assert rests[:-1] == [not later for later in fired[1:]]
    assert rests == sorted(rests) and not rests[0] and rests[-1]


def test_after_one_neuron_that_would_fire_nobody_is_asked() -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("asked")

    zeros, threshold = torch.zeros(3), Threshold(1.0, 1.0)
    for neuron in (Differential(), FewSpikes()):
        rest = Rest(True)
        rest.ask(fire_once, neuron, zeros, 1, torch.ones(3), threshold, count=False)
        rest.ask(never, FewSpikes(), zeros, 1, zeros, threshold, count=False)
        assert not rest.holds


def test_what_is_nothing_or_no_number_at_rest() -> None:
    neuron, threshold = Differential(), Threshold(1.0, 1.0)
    assert neuron.is_silent(torch.zeros(0, 3), threshold) and neuron.is_silent(torch.zeros(3), threshold)
    assert not neuron.is_silent(torch.tensor([0.0, torch.nan, 0.0]), threshold)


def test_what_is_soon_at_rest_streams_unless_told_otherwise(images: torch.Tensor) -> None:
    networks = {name: converted(name, images) for name in RECIPES}
    soon = {name for name, snn in networks.items() if snn.simulate(images, 4).mode == "streaming"}
    assert soon == {"balanced", "few-spikes", "mbe", "parallel"}, "not what goes back and forth, as cascade may"
    few = converted("balanced", images, pulses=3)
    sooner = {name for name, snn in {**networks, "few": few}.items() if snn.simulate(images, 2).mode == "streaming"}
    assert sooner == {"balanced"}, "others may need a second step"
    assert {name for name, snn in networks.items() if can_rest(snn)} == {*soon, "cascade", "differential"}
    assert networks["balanced"].simulate(images, 1).mode == "folded"
    assert networks["balanced"].simulate(images, 4, mode="folded").mode == "folded"


def test_halfway_between_two_multiples_a_neuron_goes_back_and_forth() -> None:
    """With a cutoff of one half; so its network does not rest."""
    half, threshold = torch.tensor([0.5 * 2.0**-7]), Threshold(1.0, 1.0)
    for cutoff, spikes in ((0.5, 5), (0.75, 0)):
        out, fired, _ = trajectory(Differential(8, cutoff, pulses=5), half.repeat(4, 1), threshold, masks=True)
        assert fired is not None and fired.flatten().tolist() == [spikes] * 4
        assert len(out.unique()) == (2 if spikes else 1)


def test_early_exit_does_not_run_what_would_be_silent(
    images: torch.Tensor, steps_run: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some samples stop in the first step, the others would run to the end."""
    snn = converted("cascade", images, pulses=2, head="analog", cutoff=0.75)
    first = snn.simulate(images, 1).outputs[0]
    threshold = float(margins(first).median())
    steps_run()
    stopped, ran = transpike.stop_early(snn, images, steps=STEPS, threshold=threshold), steps_run()
    monkeypatch.setattr("transpike._early_exit.can_rest", lambda model: False)
    whole = transpike.stop_early(snn, images, steps=STEPS, threshold=threshold)
    assert len(set(whole.steps.tolist())) > 1 and ran < steps_run() == STEPS
    assert torch.equal(stopped.outputs, whole.outputs) and torch.equal(stopped.steps, whole.steps)
    assert stopped.spikes.to_json() == whole.spikes.to_json()


def test_parts_of_a_batch_rest_by_themselves(images: torch.Tensor) -> None:
    snn = converted("balanced", images).to(torch.float64)
    fixed, each = need(snn, steps=STEPS, folded=False, count=True)
    whole = snn.simulate(images.double(), STEPS, mode="folded")
    parts = snn.simulate(images.double(), STEPS, max_memory=fixed + 3 * each + 1)
    assert parts.mode == "streaming, 3 samples at once"
    assert (parts.outputs - whole.outputs).abs().max() < 1e-10
    assert parts.spikes.to_json() == whole.spikes.to_json()
