"""FAS: neurons behind activations only, calibration from coarse to fine, and the fine-tuning example, tiny."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import transpike
from families import FAMILIES
from test_families import batch
from transpike._capture import capture
from transpike._compare import convert_each
from transpike._drift import drift
from transpike._execute import run_body, run_prefix
from transpike._plan import plan
from transpike.calibration import calibrate, observe
from transpike.calibration.fine import SCALES
from transpike.errors import ConfigError, PlanError
from transpike.neurons import Frame, MultiThreshold, framed, trajectory
from transpike.observers import MinimumError
from transpike.policy import Policy
from transpike.recipes import RECIPES, Recipe, cascade, fas, recipe_named

CONFIG = {"vocab_size": 40, "tie_word_embeddings": False}
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_layer": 2, "n_head": 2}
BERT = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


class Block(nn.Module):
    """[B, 5, 8] -> [B, 5, 3]: a norm, a layer behind GELU and one behind a gate, whose channels differ in size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(8, 12)
        self.down, self.last, self.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + self.down(nn.functional.gelu(self.up(h)) * torch.logspace(-2, 1, 12, dtype=x.dtype))
        h = self.norm(x)
        return self.head(x + self.last(nn.functional.silu(self.gate(h)) * self.up(h)))


@pytest.fixture(scope="module")
def model() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 5, 8, generator=generator, dtype=torch.float64) for n in (9, 16, 7)]


def arriving(snn: transpike.SpikingModel, x: Tensor) -> dict[str, Tensor]:
    """What the source gives every site."""
    found = {}

    def note(marker: torch.fx.Node, value: Tensor) -> Tensor:
        found[str(marker.args[1])] = value
        return value

    with torch.no_grad():
        run_body(snn.program, run_prefix(snn.program, (x,)), note)
    return found


def rounded(z: Tensor, theta: Tensor | float, steps: int) -> Tensor:
    """The mean of what integrate and fire from theta / 2 emits of a constant, in closed form, of either sign."""
    return theta / steps * (z * steps / theta).abs().add(0.5).floor().clamp(max=steps) * z.sign()


EXPECTED = {
    "timm_vit_tiny_patch16_224": ({"mlp.fc2"}, 0),
    "hf_gpt2": ({"mlp.c_proj"}, 0),
    "hf_llama": ({"mlp.down_proj"}, 0),
    "hf_opt": ({"fc2"}, 0),
    "hf_bert": ({"output.dense", "classifier"}, 1),  # behind the tanh of the pooler, as published
}


@pytest.mark.parametrize("name", EXPECTED)
def test_neurons_stand_in_front_of_second_linear_layers_only(name: str) -> None:
    family = next((family for family in FAMILIES if family.name == name), None)
    assert family is not None, "name another family"
    decided = plan(capture(family.build(), batch(family, 2), batch_dim=family.batch_dim), fas().policy)
    ends, more = EXPECTED[name]
    modules = {layer.module for layer in decided.layers if layer.spiking}
    assert modules and all(any(module.endswith(end) for end in ends) for module in modules)
    assert len(decided.sites) == len(modules) == 2 + more
    reasons = {layer.reason for layer in decided.layers if not layer.spiking}
    assert "not behind an activation" in reasons and "not behind an activation" in str(decided)


def test_what_is_behind_an_activation(model: Block, batches: list[Tensor]) -> None:
    """Scaled by a constant or multiplied with a gate, but not behind a norm, and no other layer."""
    decided = plan(capture(model, batches[0]), Policy(sites="activations"))
    assert [site.name for site in decided.sites] == ["down:input", "last:input"]
    spelled_out = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 4))
    with pytest.raises(PlanError, match="reads an element-wise activation; use a recipe"):
        transpike.convert(spelled_out.eval(), [torch.randn(3, 4)], "fas")
    with pytest.raises(ConfigError, match="sites must be one of all, activations"):
        Policy(sites="some")


def test_other_recipes_neither_say_nor_pay_anything(model: Block, batches: list[Tensor]) -> None:
    for name in RECIPES:
        assert ("sites" in recipe_named(name).to_json()["policy"]) is (name == "fas")
    snn = transpike.convert(model, batches, cascade(rule="mse"))
    seen = observe(snn.captured, snn.program.module, snn.plan, [snn.recipe], batches)
    assert snn.calibration.frames == {} and seen.batches == ()


@pytest.mark.parametrize("granularity", ["channel", "neuron"])
def test_fine_calibration_by_hand(model: Block, batches: list[Tensor], granularity: str) -> None:
    """The scale of least error of every group, of closed-form neurons; then the mean of what is missing. No stage makes
    any group's error larger, and the first makes it smaller somewhere."""
    coarse = transpike.convert(model, batches, fas(granularity="tensor", steps=4))
    snn = transpike.convert(model, batches, fas(granularity=granularity, shifts=True, steps=4))
    assert coarse.calibration.frames == {} and snn.thresholds == coarse.thresholds
    others = [0, 1] if granularity == "channel" else [0]
    for site, z in arriving(coarse, torch.cat(batches)).items():
        theta, frame = snn.thresholds[site].positive, snn.calibration.frames[site]
        outs = torch.stack([rounded(z, theta * scale, 4) for scale in SCALES])
        errors = (outs - z).square().sum([axis + 1 for axis in others], keepdim=True)
        least = errors.min(0).values
        assert (
            frame.scale is not None
            and frame.shift is not None
            and frame.scale.shape
            == least[0:1].shape[:1]
            + (
                1 if granularity == "channel" else 5,
                12,
            )
        )
        now = (rounded(z, theta * frame.scale.double(), 4) - z).square().sum(others, keepdim=True)
        torch.testing.assert_close(now, least, rtol=1e-9, atol=1e-12)
        assert (now <= errors[0] + 1e-12).all() and now.sum() < 0.9 * errors[0].sum()
        gap = (z - rounded(z, theta * frame.scale.double(), 4)).mean(others, keepdim=True)
        torch.testing.assert_close(frame.shift, gap.float())
        shifted = (rounded(z, theta * frame.scale.double(), 4) + frame.shift - z).square().sum(others, keepdim=True)
        assert (shifted <= now + 1e-9).all() and shifted.sum() < now.sum()


def test_no_initial_potential_has_a_smaller_error_than_half_a_threshold() -> None:
    z = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta, steps = transpike.Threshold(0.9, 0.9), 5

    def wrong(potential: float) -> Tensor:
        neuron = framed(MultiThreshold(1, 0.5), Frame(offset=torch.tensor(potential * 0.9 / steps)))
        return (trajectory(neuron, z.expand(steps, -1), theta)[0][-1] - z).square()

    for potential in (-0.375, -0.125, 0.125, 0.375):
        assert (wrong(0.0) <= wrong(potential) + 1e-12).all() and wrong(0.0).sum() < wrong(potential).sum()


@pytest.mark.parametrize("options", [{"granularity": "tensor"}, {}, {"granularity": "neuron", "shifts": True}], ids=str)
def test_the_error_vanishes_with_many_steps(model: Block, batches: list[Tensor], options: dict) -> None:
    x = batches[1]
    noise = []
    for steps in (4, 256):
        snn = transpike.convert(model, [x], fas(steps=steps, **options))
        noise.append(float((snn.simulate(x, count=False).outputs[-1] - snn.source(x)).square().mean()))
    assert 0 < noise[1] < 2e-3 * noise[0]


def test_it_is_saved_compared_and_written_in_spikes(model: Block, batches: list[Tensor], tmp_path: Path) -> None:
    x = batches[0]
    recipe = fas(granularity="neuron", steps=3)
    snn = transpike.convert(model, batches, recipe)
    loaded = transpike.load(snn.save_pretrained(tmp_path / "snn"), model=model)
    assert torch.equal(loaded.simulate(x).outputs, snn.simulate(x).outputs) and loaded.recipe == snn.recipe == recipe
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    others = convert_each(model, batches, {"mse": fas(granularity="tensor"), "fine": recipe})
    again = others["fine"].calibration.frames  # type: ignore[union-attr]
    assert others["mse"].calibration.frames == {}  # type: ignore[union-attr]
    assert all(torch.equal(again[site].scale, frame.scale) for site, frame in snn.calibration.frames.items())
    assert max(drift(snn, x, steps=3)[0].outputs) < 1e-10


def test_given_thresholds_are_refined_too_and_batches_do_not_matter(model: Block, batches: list[Tensor]) -> None:
    snn = transpike.convert(model, batches, fas())
    given = {site: transpike.SiteChoice(threshold=theta) for site, theta in snn.thresholds.items()}
    recipe = replace(fas(), patterns=given)
    found = calibrate(snn.captured, snn.program.module, snn.plan, recipe, [torch.cat(batches)])
    for site, frame in snn.calibration.frames.items():
        assert torch.equal(found.frames[site].scale, frame.scale)
    with pytest.raises(ConfigError, match="shifts are found by"):
        fas(granularity="tensor", shifts=True)
    with pytest.raises(ConfigError, match="granularity must be"):
        MinimumError("row")


def test_analog_layers_are_priced_at_every_step(model: Block, batches: list[Tensor]) -> None:
    """Also where neurons stand in frames that no spike could be written in."""
    snn = transpike.convert(model, batches, fas(shifts=True, steps=4))
    sheet = snn.energy_sheet(snn.simulate(batches[0]))
    treated = {e.module: e for e in sheet.ledger.entries if e.op == "linear.default"}
    assert treated["gate"].treatment == treated["head"].treatment == "analog at every step"
    for kind, once in treated["gate"].once.items():
        assert np.allclose(treated["gate"].steps[kind], [once] * 4)
    assert treated["down"].treatment == "weights on spikes"
    assert sheet.comparison("FP32", "compute-complete").ratio[-1] > 1


# --- the example -----------------------------------------------------------------------------------------------------


def folder_of(config: dict, to: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    whole = {**CONFIG, **config}
    built = transformers.AutoConfig.for_model(**{k: v for k, v in whole.items() if k != "architectures"})
    getattr(transformers, config["architectures"][0])(built).save_pretrained(to)
    return to


def test_rounding_is_what_the_neuron_emits() -> None:
    from finetune_fas import Signed

    z = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    emitted = trajectory(MultiThreshold(1, 0.5), z.expand(8, -1), transpike.Threshold(0.7, 0.7))[0][-1]
    torch.testing.assert_close(Signed(0.7, 8)(z), emitted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "more"), [(GPT2, ["--relu"]), (LLAMA, []), (BERT, ["--relu"])], ids=["gpt2", "llama", "bert"]
)
def test_the_example_runs(
    config: dict, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import finetune_fas
    from transpike.zoo import load_model

    folder, out = folder_of(config, tmp_path / "source"), tmp_path / "out"
    x = np.random.default_rng(0).integers(0, 8, (24, 1)) * np.ones((1, 12), np.int64)
    np.savez(tmp_path / "tokens.npz", x=(x + np.arange(12)) % 40, y=x[:, 0] >= 4)
    data = ["--data", f"{tmp_path}/tokens.npz", "--held-out", f"{tmp_path}/tokens.npz"]
    options = ["--steps", "12", "--rate", "0.01", "--time-steps", "4", *more]
    monkeypatch.setattr(sys, "argv", ["finetune_fas.py", str(folder), str(out), *data, *options])
    finetune_fas.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    loss = {line[0]: float(line[-2]) for line in lines if line and line[0] in ("source", "fine-tuned")}
    assert loss["fine-tuned"] < 0.9 * loss["source"], "counting by one, or from where it starts, is soon learned"
    assert sum(line[:1] == ["fas"] for line in lines) == 4
    thresholds = json.loads((out / "thresholds.json").read_text())
    tuned = load_model(f"hf:{out / 'model'}")[0]
    assert len(thresholds) == 2 + (config is BERT) and not hasattr(tuned, "fas_roundings")
    known = tuned.config.to_dict()
    assert known.get("activation_function", known.get("hidden_act")) == ("relu" if more else "silu")
    snn = transpike.load(out / "snn")
    assert {name: t.positive for name, t in snn.thresholds.items()} == pytest.approx(thresholds)
    tokens = {"input_ids": torch.from_numpy(x[:2])}
    assert torch.allclose(snn.source(tokens), tuned(**tokens).logits, atol=1e-5)


def test_the_relu_twin_of_a_folder_of_shards(tmp_path: Path) -> None:
    import finetune_fas
    from transpike.errors import CheckpointError
    from transpike.zoo.weight_files import read_tensors

    (tmp_path / "config.json").write_text('{"hidden_act": "gelu", "depth": 2}')
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        finetune_fas.with_relu(tmp_path, tmp_path / "twin")
    assert not (tmp_path / "twin").exists()
    tensors = {name: torch.randn(3) for name in "ab"}
    for name in tensors:
        save_file({name: tensors[name]}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    twin = finetune_fas.with_relu(tmp_path, tmp_path / "twin")
    assert json.loads((twin / "config.json").read_text()) == {"hidden_act": "relu", "depth": 2}
    found = read_tensors(twin)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_bad_data_is_named(tmp_path: Path) -> None:
    import finetune_fas
    from transpike.errors import DataError

    with pytest.raises(DataError, match="no .npz of token ids"):
        finetune_fas.read(tmp_path / "absent.npz")
    np.savez(tmp_path / "y.npz", y=np.zeros(3))
    with pytest.raises(DataError, match="has no x of two dimensions"):
        finetune_fas.read(tmp_path / "y.npz")
