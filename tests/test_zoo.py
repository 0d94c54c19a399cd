"""Loading models: what fits is loaded exactly, what does not is refused by name, and nothing is half-loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from transpike.errors import CheckpointError, ConfigError, MissingExtra, ModelError
from transpike.zoo import (
    Source,
    build,
    data_config,
    describe,
    load_checkpoint,
    load_model,
)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
DEIT = SHARED / "data" / "deit-tiny" / "deit_tiny_patch16_224.safetensors"
TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}


def _mlp(*, hidden: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2))


def _same(model: nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


# --- Source ---------------------------------------------------------------------------------------------------------


def test_source_survives_json() -> None:
    source = Source("timm", "vit_tiny_patch16_224", {"img_size": (32, 32), "qkv_bias": False})
    assert source.options["img_size"] == [32, 32]
    assert Source.from_json(json.loads(json.dumps(source.to_json()))) == source


@pytest.mark.parametrize(
    "data", [{"kind": "pickle", "name": "x"}, {"kind": "timm"}, {"kind": "timm", "name": "x", "code": "y"}, [1], None]
)
def test_source_refuses_other_json(data: Any) -> None:
    with pytest.raises(ConfigError):
        Source.from_json(data)


def test_source_refuses_what_is_not_json() -> None:
    with pytest.raises(ConfigError, match="JSON"):
        Source("timm", "vit_tiny_patch16_224", {"act_layer": nn.ReLU})


# --- load_model: timm -----------------------------------------------------------------------------------------------


def test_timm_model_is_built_with_its_options() -> None:
    pytest.importorskip("timm")
    model, source = load_model("timm:vit_tiny_patch16_224", options=TINY)
    assert not model.training
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
    assert source == Source("timm", "vit_tiny_patch16_224", TINY)
    assert describe(model) == source


def test_unknown_timm_name_gets_suggestions() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="did you mean .*deit_tiny_patch16_224") as caught:
        load_model("timm:deit_tiny_patch16_225")
    assert 1 <= str(caught.value).split("did you mean")[1].count(",") + 1 <= 5


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_timm_options_that_read_files_are_refused(option: str) -> None:
    pytest.importorskip("timm")
    for refused in (lambda s: load_model("timm:resnet18", options=s.options), build):
        with pytest.raises(ModelError, match=option):
            refused(Source("timm", "resnet18", {option: "weights.pth"}))


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:somewhere"])
def test_timm_names_that_fetch_are_refused(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="no model"):
        build(Source("timm", name))


@pytest.mark.parametrize(("package", "spec"), [("timm", "timm:resnet18"), ("transformers", "hf:.")])
def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str, spec: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}, which is not installed; run: pip install 'transpike\["):
        load_model(spec)


def test_timm_downloads_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained, **options: asked.append(pretrained) or _mlp())
    load_model("timm:resnet18")
    load_model("timm:resnet18", pretrained=True)
    assert asked == [False, True]


def test_timm_refuses_bad_options_and_two_sources_of_weights(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="could not build vit_tiny_patch16_224.*nonsense"):
        load_model("timm:vit_tiny_patch16_224", options={"nonsense": 1})
    with pytest.raises(ConfigError, match="not both"):
        load_model("timm:resnet18", pretrained=True, checkpoint=tmp_path)


@pytest.mark.shared
@pytest.mark.skipif(not DEIT.is_file(), reason="the shared DeiT-Tiny checkpoint is not beside the checkout")
def test_deit_tiny_loads_exactly() -> None:
    pytest.importorskip("timm")
    model, source = load_model("timm:deit_tiny_patch16_224", checkpoint=DEIT)
    assert _same(model, load_file(DEIT))
    assert data_config(model)["mean"] == (0.485, 0.456, 0.406)
    rebuilt = build(source)
    load_checkpoint(rebuilt, DEIT)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rebuilt(image), model(image))
    with pytest.raises(CheckpointError, match=r"151 tensors \(cls_token: float32 \[1, 1, 192\] in the file"):
        load_model("timm:deit_small_patch16_224", checkpoint=DEIT)


# --- load_model: factory, digits, nothing ---------------------------------------------------------------------------


@pytest.fixture
def factory_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "zoo_test_models.py").write_text(
        "import torch\n"
        "def make_linear(width=3, device=None): return torch.nn.Linear(width, 2, device=device).train()\n"
        "def make_tuple(): return 1, 2\n"
        "def make_trouble(): raise RuntimeError('out of cheese')\n"
        "def make_nan():\n"
        "    layer = torch.nn.Linear(2, 2)\n"
        "    torch.nn.init.constant_(layer.bias, float('nan'))\n"
        "    return layer\n"
        "number = 3\n"
    )
    (tmp_path / "zoo_test_needy.py").write_text("import package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "zoo_test_models", raising=False)
    return "zoo_test_models"


def test_factory_is_called_with_options(factory_module: str) -> None:
    path = list(sys.path)
    model, source = load_model(f"{factory_module}:make_linear", options={"width": 5})
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5
    assert not model.training
    assert sys.path == path
    assert describe(model) == source == Source("factory", f"{factory_module}:make_linear", {"width": 5})
    with pytest.raises(ModelError, match=r"never imported.*transpike.load\(path, model=...\)"):
        build(source)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zoo_test_models:make_linaer", "has no 'make_linaer'; it has make_linear"),
        ("zoo_test_models:unlike_any", "has no 'unlike_any'; it has make_linear, make_tuple"),
        ("zoo_test_models:make_tuple", "returned a tuple"),
        ("zoo_test_models:make_trouble", "raised RuntimeError: out of cheese"),
        ("zoo_test_models:number", "is a int"),
        ("zoo_test_absent:make", "there is no module 'zoo_test_absent'"),
        ("zoo_test_needy:make", "package_that_is_not_there"),
        ("vit_tiny_patch16_224", "timm:NAME.*hf:FOLDER_OR_NAME.*MODULE:FACTORY.*digits"),
        ("models/mine.py:make", "timm:NAME.*hf:FOLDER_OR_NAME.*MODULE:FACTORY.*digits"),
        ("timm:", "timm:NAME"),
    ],
)
def test_specs_that_name_nothing(factory_module: str, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_factory_model_without_numbers_is_refused(factory_module: str) -> None:
    with pytest.raises(CheckpointError, match=r"NaN or Inf in 1 tensor \(bias\)"):
        load_model(f"{factory_module}:make_nan")
    with pytest.raises(CheckpointError, match="meta device"):
        load_model(f"{factory_module}:make_linear", options={"device": "meta"})


def test_digits_load_and_rebuild() -> None:
    model, source = load_model("digits")
    assert data_config(model)["input_size"] == (1, 8, 8)
    assert build(source).state_dict().keys() == model.state_dict().keys()
    del model._transpike_source
    assert describe(model) == source
    with pytest.raises(ConfigError, match="no options"):
        load_model("digits", options={"width": 3})


def test_importing_the_zoo_imports_no_optional_package() -> None:
    code = (
        "import sys, transpike.zoo as zoo; zoo.describe(zoo.load_model('digits')[0]); "
        "print([n for n in ('timm', 'transformers', 'datasets', 'PIL', 'torchvision') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
