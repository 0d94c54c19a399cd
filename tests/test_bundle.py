"""Saved networks: the same outputs bit for bit, and a clear refusal of every damaged folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import transpike
from transpike.errors import CheckpointError, ConfigError, ModelError
from transpike.zoo.digits import load_digits, load_model


def digits(count: int = 4) -> torch.Tensor:
    return torch.from_numpy(load_digits("test")[0][:count]).float().unsqueeze(1) / 16


class Masked(nn.Module):
    """Positional and keyword tensors, and a fixed keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor, square: bool = False) -> torch.Tensor:
        hidden = self.first(x).relu() * mask
        hidden = self.second(hidden).relu()
        return self.third(hidden * hidden if square else hidden)


def owners_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Masked().eval()


def owners_inputs() -> Any:
    torch.manual_seed(1)
    return torch.randn(4, 6), {"mask": torch.rand(4, 8), "square": True}


def vit() -> tuple[nn.Module, Any]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, depth=1).eval()
    return model, torch.randn(3, 3, 32, 32)


def bert() -> tuple[nn.Module, Any]:
    import transformers

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 50,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    return model, {"input_ids": torch.randint(0, 50, (3, 9)), "attention_mask": mask}


def gpt2() -> tuple[nn.Module, Any]:
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).eval()
    return model, {"input_ids": torch.randint(0, 50, (3, 9))}


def float64() -> tuple[nn.Module, Any]:
    return load_model().double(), digits().double()


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "digits": lambda: (load_model(), digits()),
    "float64": float64,
    "timm": vit,
    "bert": bert,
    "tied weights": gpt2,
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_outputs_bit_for_bit(case: str, tmp_path: Path) -> None:
    model, inputs = CASES[case]()
    snn = transpike.convert(model, [inputs])
    snn.save_pretrained(tmp_path / "a")
    again = transpike.load(tmp_path / "a")
    assert again.thresholds == snn.thresholds and again.recipe == snn.recipe
    for mode in ("folded", "streaming"):
        before, after = (network.simulate(inputs, 3, mode=mode) for network in (snn, again))
        assert torch.equal(before.outputs, after.outputs)
        assert before.spikes.to_json() == after.spikes.to_json()
    again.save_pretrained(tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_model_only_its_owner_can_build(tmp_path: Path) -> None:
    snn = transpike.convert(owners_model(), [owners_inputs()])
    snn.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model="):
        transpike.load(tmp_path)
    other = owners_model(seed=5)  # another instance: its weights are replaced in a copy
    before = {name: value.clone() for name, value in other.state_dict().items()}
    again = transpike.load(tmp_path, model=other)
    assert torch.equal(again.simulate(owners_inputs(), 3).outputs, snn.simulate(owners_inputs(), 3).outputs)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(CheckpointError, match="third"):
        wrong = owners_model()
        wrong.third = nn.Linear(8, 4)
        transpike.load(tmp_path, model=wrong)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return transpike.convert(load_model(), [digits()]).save_pretrained(tmp_path / "net")


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((bundle / "config.json").read_text())
    change(config)
    (bundle / "config.json").write_text(json.dumps(config))


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, value = path

    def change(config: Any) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9999])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda b: (b / "config.json").unlink(), "holds no config.json"),
    "cut config": (lambda b: (b / "config.json").write_text((b / "config.json").read_text()[:500]), "is damaged"),
    "binary config": (lambda b: (b / "config.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "a list": (lambda b: (b / "config.json").write_text("[]"), "not a saved spiking network"),
    "another format": (lambda b: edit(b, put("format", "bert")), "not a saved spiking network"),
    "a later version": (lambda b: edit(b, put("format_version", 99)), "format version 99"),
    "a missing key": (lambda b: edit(b, lambda c: c.pop("recipe")), "lacks recipe"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), "lacks model.safetensors"),
    "cut weights": (lambda b: cut(b / "model.safetensors"), "truncated"),
    "pickled weights": (lambda b: torch.save({}, b / "model.safetensors"), "truncated or replaced"),
    "unknown neuron": (lambda b: edit(b, put("recipe", "neuron", {"type": "magic"})), "unknown neuron 'magic'"),
    "no levels": (lambda b: edit(b, put("recipe", "neuron", "levels", 0)), "levels"),
    "percentile 2": (lambda b: edit(b, put("recipe", "range", "fraction", 2)), "percentile"),
    "another site": (lambda b: edit(b, put("sites", 0, "name", "elsewhere")), "elsewhere"),
    "another shape": (lambda b: edit(b, put("sites", 0, "shape", [None, 1])), "shapes or the order"),
    "a strange source": (lambda b: edit(b, put("source", {"kind": "url", "name": "x"})), "kind 'url'"),
    "no such timm model": (lambda b: edit(b, put("source", {"kind": "timm", "name": "vit_nowhere"})), "vit_nowhere"),
    "a broken call": (lambda b: edit(b, put("call", "args", [{"tensor": 7}])), "signature"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_in_one_sentence(case: str, bundle: Path) -> None:
    damage, message = DAMAGE[case]
    damage(bundle)
    with pytest.raises(transpike.TranspikeError, match=message) as caught:
        transpike.load(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", [torch.tensor([float("nan"), 1.0]), torch.ones(3), None], ids=["nan", "three", "none"])
def test_unsound_thresholds_are_refused(bundle: Path, pair: torch.Tensor | None) -> None:
    import hashlib

    path = bundle / "thresholds.safetensors"
    stored = safetensors.torch.load_file(path)
    name = sorted(stored)[0]
    stored.pop(name)
    safetensors.torch.save_file(stored if pair is None else {**stored, name: pair}, path)
    edit(bundle, put("files", path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(ConfigError, match=f"site {name}"):
        transpike.load(bundle)


def test_a_flipped_bit_is_noticed(bundle: Path) -> None:
    path = bundle / "thresholds.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="thresholds.safetensors"):
        transpike.load(bundle)


def test_no_code_named_in_a_file_is_imported(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "innocent.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(bundle, put("source", {"kind": "factory", "name": "innocent:make", "options": {}}))
    with pytest.raises(ModelError, match="only its owner can build"):
        transpike.load(bundle)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_what_was_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    snn = transpike.load(bundle)

    def full(*args: object, **kwargs: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ConfigError, match="No space left"):
        snn.save_pretrained(bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_half_overwritten_folder_does_not_load(bundle: Path, tmp_path: Path) -> None:
    """As when a second save dies after the weights: the config still speaks of the old ones."""
    model = load_model()
    with torch.no_grad():
        model.head.bias += 1
    other = transpike.convert(model, [digits()]).save_pretrained(tmp_path / "other")
    shutil.copy(other / "model.safetensors", bundle)
    with pytest.raises(ConfigError, match="not the file that was saved"):
        transpike.load(bundle)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    snn = transpike.convert(load_model(), [digits()])
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="it is a file"):
        snn.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_nowhere() -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        transpike.load("no/such/folder/at/all")
