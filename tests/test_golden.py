"""The published implementation's own runs, reproduced through the ordinary public API."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import transpike
from transpike._execute import run_body, run_prefix
from transpike.neurons import PublishedMultiThreshold
from transpike.recipes import SiteChoice, ecmt_code

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden"
pytestmark = pytest.mark.shared

SITES = {  # the reference's place -> our site in the same block
    "attn.x_in_test": "attn.qkv:input",
    "attn.q_out_test": "attn:query",
    "attn.k_out_test": "attn:key",
    "attn.v_out_test": "attn:value",
    "attn.attn_out_test": "attn:softmax",
    "attn.x_out_test": "attn.proj:input",
    "mlp.x1_in_test": "mlp.fc1:input",
    "mlp.x2_in_test": "mlp.fc2:input",
}
LAYERS = {"attn.at1": "attn:query*key", "attn.at2": "attn:softmax*value"}


def rename(name: str, table: dict[str, str]) -> str:
    if not name.startswith("blocks"):
        return name.rstrip(".")
    block, place = name[: len("blocks.0")], name[len("blocks.0.") :]
    return f"{block}.{table.get(place, place)}"


class Golden:
    def __init__(self, letter: str) -> None:
        path = GOLDEN / f"ecmt_reference_{letter}.safetensors"
        if not path.exists():
            pytest.skip(f"the shared golden vectors are not here: {path.name}")
        with safe_open(path, "pt") as file:
            meta = {key: json.loads(value) for key, value in file.metadata().items() if value[0] in "{["}
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.config, self.sites = meta["config"], meta["sites"]
        self.spike_counts, self.synaptic_ops = meta["spike_counts"], meta["synaptic_ops"]
        self.steps = self.tensors["snn_mean_logits"].shape[0]


@pytest.fixture(params=["a", "b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def snn(golden: Golden) -> transpike.SpikingModel:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**golden.config, norm_layer=None).double().eval()
    weights = {
        key.removeprefix("weights/"): value for key, value in golden.tensors.items() if key.startswith("weights/")
    }
    model.load_state_dict(weights)
    thresholds, patterns = {}, {}
    for name, site in golden.sites.items():
        ours = rename(name, SITES)
        thresholds[ours] = (site["theta_p_smallest"], site["theta_n_smallest"])
        patterns[ours] = SiteChoice(levels=site["levels"])
    recipe = replace(ecmt_code(fc2=None), patterns=patterns)
    return transpike.convert(model, thresholds, recipe, example=golden.tensors["input"])


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_reproduces_the_reference(golden: Golden, snn: transpike.SpikingModel, mode: str) -> None:
    run = snn.simulate(golden.tensors["input"], steps=golden.steps, mode=mode)
    assert (run.outputs - golden.tensors["snn_mean_logits"]).abs().max() < 1e-10
    for name, counts in golden.spike_counts.items():
        assert run.spikes.spikes[rename(name, SITES)].tolist() == counts, name
    for name, pairs in golden.synaptic_ops.items():
        layer = rename(name, LAYERS)
        assert run.spikes.operations[layer].tolist() == [pair[0] for pair in pairs], name
        assert run.spikes.dense[layer] * run.spikes.samples == pairs[0][1], name
    account = snn.energy(run)
    rho = np.cumsum([sum(p[t][0] for p in golden.synaptic_ops.values()) for t in range(golden.steps)])
    dense = sum(pairs[0][1] for pairs in golden.synaptic_ops.values())
    np.testing.assert_allclose(account.ratio, rho / dense * 0.9 / 4.6, rtol=1e-12)


def test_every_spike_is_the_reference_spike(golden: Golden, snn: transpike.SpikingModel) -> None:
    """Emitted amplitudes at every site, step and neuron."""
    crossing = run_prefix(snn.program, snn.prepare(golden.tensors["input"]))
    state: dict[str, torch.Tensor] = {}
    emitted: dict[str, list[torch.Tensor]] = {name: [] for name in snn.neurons}
    for t in range(1, golden.steps + 1):

        def fire(marker: torch.fx.Node, value: torch.Tensor, t: int = t) -> torch.Tensor:
            site = marker.args[1]
            neuron = snn.neurons[site]
            assert isinstance(neuron, PublishedMultiThreshold)
            state[site], out, spikes = neuron.step(state.get(site), t, value, snn.thresholds[site])
            emitted[site].append(spikes)
            return out

        run_body(snn.program, crossing, fire)
    for name in golden.sites:
        ours, theirs = torch.stack(emitted[rename(name, SITES)]).float(), golden.tensors[f"spikes/{name}"]
        assert torch.equal(ours, theirs), f"{name}: {(ours != theirs).sum()} spikes differ"
