"""Hugging Face folders: loaded as transformers loads them, and never a way to code, the network or other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from transpike.errors import CheckpointError, ConfigError, ModelError
from transpike.zoo import Source, build, load_checkpoint, load_model, tokenizer


def _copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(model: nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=7, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("folder", ["bert_folder", "vit_folder"])
def test_hf_folder_loads_and_rebuilds(folder: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    transformers = pytest.importorskip("transformers")
    model, source = load_model(f"hf:{path}")
    reference = getattr(transformers, source.options["class"]).from_pretrained(path)
    assert not model.training
    assert _same(model, reference.state_dict())
    rebuilt = build(Source.from_json(json.loads(json.dumps(source.to_json()))))
    assert type(rebuilt) is type(reference)
    assert not _same(rebuilt, reference.state_dict())
    load_checkpoint(rebuilt, path)  # ViT's names on disk are not those in memory
    assert _same(rebuilt, reference.state_dict())
    again, _ = load_model(f"hf:{path}", checkpoint=path / "model.safetensors")
    assert _same(again, reference.state_dict())


def test_hf_model_does_not_depend_on_its_file_any_more(bert_folder: Path) -> None:
    model, _ = load_model(f"hf:{bert_folder}")
    before = _copies(model)
    file = bert_folder / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 4)
        opened.write(bytes(size // 2))
    assert _same(model, before)


def test_hf_class_and_config_can_be_overridden(bert_folder: Path) -> None:
    model, source = load_model(
        f"hf:{bert_folder}", options={"class": "BertModel", "config": {"hidden_dropout_prob": 0.0, "dtype": "float64"}}
    )
    assert type(model).__name__ == source.options["class"] == "BertModel"
    assert next(model.parameters()).dtype is torch.float64
    assert source.options["config"]["hidden_dropout_prob"] == 0.0
    assert next(build(source).parameters()).dtype is torch.float64
    with pytest.raises(ConfigError, match="nonsense"):
        load_model(f"hf:{bert_folder}", options={"config": {"nonsense": 1}})
    with pytest.raises(CheckpointError, match=r"classifier.weight: \[3, 32\] in the file, \[7, 32\] in the model"):
        load_model(f"hf:{bert_folder}", options={"config": {"num_labels": 7}})
    with pytest.raises(CheckpointError, match=r"cls\.predictions.* missing"):
        load_model(f"hf:{bert_folder}", options={"class": "BertForMaskedLM"})


def test_hf_network_only_when_asked(monkeypatch: pytest.MonkeyPatch, bert_folder: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    local_only = []

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not any(pattern.endswith((".bin", "*")) for pattern in allow_patterns)
        local_only.append(local_files_only)
        return str(bert_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    load_model("hf:somebody/bert")
    load_model("hf:somebody/bert", pretrained=True)
    tokenizer("hf:somebody/bert")
    assert local_only == [True, False, True]


def test_hf_folder_errors(tmp_path: Path, bert_folder: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        load_model(f"hf:{tmp_path / 'absent'}")
    with pytest.raises(ModelError, match="no config.json"):
        load_model(f"hf:{tmp_path}")
    weights = bert_folder / "model.safetensors"
    weights.rename(bert_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickled"):
        load_model(f"hf:{bert_folder}")
    config = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(ModelError, match="quantised"):
        load_model(f"hf:{bert_folder}")
    (bert_folder / "config.json").write_text(json.dumps(config | {"model_type": "custom", "auto_map": {"A": "b.C"}}))
    with pytest.raises(ModelError, match="code of the hub is never run"):
        load_model(f"hf:{bert_folder}")
    (bert_folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ModelError, match="config.json cannot be read"):
        load_model(f"hf:{bert_folder}")


def test_hf_config_cannot_reach_outside(bert_folder: Path) -> None:
    _, source = load_model(f"hf:{bert_folder}")
    hostile = source.options["config"] | {"attn_implementation": "somebody/kernel", "auto_map": {"AutoModel": "x.Y"}}
    assert build(Source("hf", "x", {"class": "BertModel", "config": hostile})).config._attn_implementation != (
        "somebody/kernel"
    )
    for name in ("pipeline", "BertConfig", "__loader__", "utils.logging", 3):
        with pytest.raises(ModelError, match="no model class"):
            build(Source("hf", "x", {"class": name, "config": source.options["config"]}))
    wrapped = {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "x.pth"}}
    with pytest.raises(ModelError, match="model_args.*loads from elsewhere"):
        build(Source("hf", "x", {"class": "TimmWrapperModel", "config": wrapped}))


def test_tokenizer_of_a_folder(bert_folder: Path) -> None:
    assert tokenizer(f"hf:{bert_folder}") is None
    (bert_folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    found = tokenizer(f"hf:{bert_folder}")
    assert found is not None
    assert found("good bad")["input_ids"] == [2, 5, 6, 3]
    assert tokenizer("digits") is None
