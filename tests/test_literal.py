"""The network in spikes equals the fast simulator: every neuron, every family, every step, every spike."""

from __future__ import annotations

from random import Random

import pytest
import torch

import transpike
from families import FAMILIES, Family
from test_families import batch, doubled, no_fast_path  # noqa: F401
from transpike._literal import BrokenPromise, Literal
from transpike.recipes import RECIPES
from transpike.types import Threshold

STEPS = 3


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama-like models compute norms in float32 whatever their dtype, which would hide differences below 1e-7."""
    from transpike import _convert

    plain = _convert.capture

    def capture(*args: object, **kwargs: object) -> transpike.Captured:
        captured = plain(*args, **kwargs)
        for node in captured.graph.graph.nodes:
            if node.target is torch.ops.aten.to.dtype and node.args[1] is torch.float32:
                node.args = (node.args[0], torch.float64, *node.args[2:])
        captured.graph.recompile()
        return captured

    monkeypatch.setattr(_convert, "capture", capture)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_literal_equals_fast(family: Family, recipe: str) -> None:
    inputs = doubled(batch(family, 2))
    snn = transpike.convert(family.build().double(), [inputs], recipe, batch_dim=family.batch_dim)
    without_ties(snn)
    fast = snn.simulate(inputs, STEPS, mode="streaming")
    literal, _ = Literal(snn, check=True).run(inputs, steps=STEPS)
    assert (literal.outputs - fast.outputs).abs().max() <= 1e-10 * max(fast.outputs.abs().max().item(), 1.0)
    different = {site: (fast.spikes.spikes[site] - counts).tolist() for site, counts in literal.spikes.spikes.items()}
    assert not any(any(row) for row in different.values()), different


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


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_continues_from_its_state(recipe: str) -> None:
    snn, images = digits(recipe)
    whole, _ = Literal(snn).run(images, steps=5)
    first, state = Literal(snn).run(images, steps=2)
    rest, _ = Literal(snn).run(images, steps=5, state=state)
    assert torch.equal(torch.cat([first.outputs, rest.outputs]), whole.outputs)


def test_a_neuron_that_emits_what_is_not_a_level_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, images = digits()
    monkeypatch.setattr(type(next(iter(snn.neurons.values()))), "quantise", lambda self, v, threshold: v * 0.3)
    with pytest.raises(BrokenPromise, match="none of its levels"):
        Literal(snn, check=True).run(images, steps=1)
