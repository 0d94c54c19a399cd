"""What a model says about itself: how it can be rebuilt, and how its inputs are prepared."""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from transpike.errors import ModelError
from transpike.zoo import Source, build, data_config, describe, load_model

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}


class Gate(nn.Module):
    """A module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"num_classes": 7, "img_size": 32}),
        ("resnet18", {"in_chans": 1, "num_classes": 4}),
    ],
)
def test_describe_guesses_timm_arguments(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **options)
    model.__dict__.pop("_model_args", None)  # what only newer versions of timm remember
    state = torch.random.get_rng_state()
    source = describe(model)
    assert source.kind == "timm"
    assert torch.equal(torch.random.get_rng_state(), state)
    rebuilt = build(source)
    rebuilt.load_state_dict(model.state_dict())
    size = (2, options.get("in_chans", 3), *([options.get("img_size", 224)] * 2))
    image = torch.randn(size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rebuilt(image), model.eval()(image))


def test_describe_keeps_the_type_of_the_weights() -> None:
    timm = pytest.importorskip("timm")
    source = describe(timm.create_model("vit_tiny_patch16_224", **TINY).double())
    assert source.kind == "timm"
    assert {parameter.dtype for parameter in build(source).parameters()} == {torch.float64}


def test_a_module_may_hold_a_method_of_a_type() -> None:
    model = torch.nn.Linear(2, 2)
    model.act = torch.Tensor.tanh  # which is of no module
    assert describe(model).kind == "owner"


def test_describe_does_not_take_more_heads_for_the_same_model() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", num_heads=6)  # the same tensors and the same repr as with 3
    model.__dict__.pop("_model_args", None)
    assert describe(model).kind == "owner"


def test_describe_does_not_take_an_edited_model_for_the_original() -> None:
    pytest.importorskip("timm")
    model, source = load_model("timm:vit_tiny_patch16_224", options=TINY)
    assert describe(model) == source
    hook = model.norm.register_forward_hook(lambda module, args, output: 2 * output)
    assert describe(model).kind == "owner"
    hook.remove()
    assert describe(model) == source
    for owner, method in ((model, "forward_features"), (model.blocks[0].attn, "_pos"), (model, "forward")):
        setattr(owner, method, MethodType(lambda self, x: x, owner))
        assert describe(model).kind == "owner"
        delattr(owner, method)
    assert describe(model) == source
    model.head = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1000))
    assert describe(model) == Source("owner", "timm.models.vision_transformer.VisionTransformer")


def test_describe_hugging_face_model(bert_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification.from_pretrained(bert_folder).eval()
    source = describe(model)
    assert source.kind == "hf"
    assert str(bert_folder) not in json.dumps(source.options)
    rebuilt = build(source)
    rebuilt.load_state_dict(model.state_dict())
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(rebuilt(tokens).logits, model(tokens).logits)
    model.bert.embeddings.position_ids += 1  # not in a state_dict
    assert describe(model).kind == "owner"
    model.bert.embeddings.position_ids -= 1
    assert describe(model) == source
    model.classifier = nn.Linear(32, 9)
    assert describe(model).kind == "owner"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_describe_keeps_the_way_attention_is_computed(bert_folder: Path, attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind = transformers.BertForSequenceClassification
    model = kind.from_pretrained(bert_folder, attn_implementation=attention).eval()
    assert build(describe(model)).config._attn_implementation == attention


def test_describe_names_the_class_of_a_module_of_ones_own() -> None:
    assert describe(Gate()) == Source("owner", f"{__name__}.Gate")
    with pytest.raises(ModelError, match="never imported"):
        build(describe(Gate()))


# --- data_config ----------------------------------------------------------------------------------------------------


def test_data_config_of_timm_follows_the_size_the_model_was_built_for() -> None:
    pytest.importorskip("timm")
    model, _ = load_model("timm:vit_tiny_patch16_224", options=TINY)
    config = data_config(model)
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == (0.5, 0.5, 0.5)
    assert config["interpolation"] == "bicubic"


def test_data_config_of_a_plain_module() -> None:
    model = Gate()
    assert data_config(model) == {}
    model.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.1,), "std": (0.3,), "classes": ("a", "b")}
    assert data_config(model) == {"input_size": (1, 8, 8), "mean": (0.1,), "std": (0.3,)}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"size": {"height": 32, "width": 48}, "do_center_crop": False, "resample": 2},
            {"input_size": (3, 32, 48), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            {"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
        ),
        ({"size": 224}, {"input_size": (3, 224, 224), "crop_pct": 1.0}),
        ({"size": 224, "do_rescale": False, "image_mean": [51.0] * 3}, {"mean": (0.2,) * 3, "std": (0.25 / 255,) * 3}),
        ({"size": 224, "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_data_config_of_an_image_processor(
    vit_folder: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], expected: dict[str, Any]
) -> None:
    model, _ = load_model(f"hf:{vit_folder}")
    assert data_config(model) == {}
    written = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.25, 0.25], **facts}
    (vit_folder / "preprocessor_config.json").write_text(json.dumps(written))
    config = data_config(model)
    for key, value in {"mean": (0.5, 0.4, 0.3), "std": (0.25,) * 3, **expected}.items():
        assert config[key] == (pytest.approx(value) if key in ("mean", "std", "crop_pct") else value), key


def test_data_config_knows_the_defaults_of_the_processor_class(vit_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    transformers.CLIPImageProcessor().save_pretrained(vit_folder)
    model, _ = load_model(f"hf:{vit_folder}")
    config = data_config(model)
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (config["crop_mode"], config["crop_pct"]) == ("center", 1.0)
