"""Every model family transpike promises: captured exactly, simulated the same folded and streaming."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import transpike
from families import FAMILIES, Family
from transpike._capture import fixed_arguments, primary
from transpike._mark import insert_sites


@pytest.fixture(autouse=True)
def no_fast_path() -> Any:
    """Eager nn.TransformerEncoder takes a shortcut without gradients that drops padded positions."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def batch(family: Family, size: int) -> Any:
    args, kwargs = family.inputs(size)
    return (*args, kwargs) if kwargs else args


def doubled(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, inputs
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_with_identity_neurons_the_graph_is_the_model(family: Family) -> None:
    model = family.build()
    captured = transpike.capture(model, batch(family, 2), batch_dim=family.batch_dim)
    plan = transpike.plan(captured)
    assert captured.free_batch
    assert plan.sites and not plan.unknown
    marked = insert_sites(captured, plan)
    for size in (5, 1):
        args, kwargs = family.inputs(size)
        with torch.no_grad():
            expected = primary(model(*args, **{**fixed_arguments(model), **kwargs}))
            (found,) = marked(*captured.flatten(batch(family, size)))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_folded_equals_streaming(family: Family) -> None:
    """Outputs to 1e-9 and every count exactly, in float64, with masks where the model takes them."""
    model = family.build().double()
    inputs = doubled(batch(family, 2))
    snn = transpike.convert(model, [inputs], batch_dim=family.batch_dim)
    assert snn.unfoldable == ""
    folded, streaming = (snn.simulate(inputs, 3, mode=mode) for mode in ("folded", "streaming"))
    scale = folded.outputs.abs().max()
    assert (folded.outputs - streaming.outputs).abs().max() <= 1e-9 * scale
    assert torch.isfinite(folded.outputs).all()
    assert folded.spikes.to_json() == streaming.spikes.to_json()
    assert folded.spikes.spikes_per_neuron()[0] > 0
