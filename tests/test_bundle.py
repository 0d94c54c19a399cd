"""Saved networks: the same outputs bit for bit, and a clear refusal of every damaged folder."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import transpike
from transpike.codecs.bundle import TYPES
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


def assert_equal(snn: transpike.SpikingModel, again: transpike.SpikingModel, inputs: Any) -> None:
    for mode in ("folded", "streaming"):
        before, after = (network.simulate(inputs, 3, mode=mode) for network in (snn, again))
        assert torch.equal(before.outputs, after.outputs)
        assert before.spikes.to_json() == after.spikes.to_json()


@pytest.mark.parametrize("case", CASES)
def test_the_same_outputs_bit_for_bit(case: str, tmp_path: Path) -> None:
    model, inputs = CASES[case]()
    snn = transpike.convert(model, [inputs])
    snn.save_pretrained(tmp_path / "a")
    again = transpike.load(tmp_path / "a")
    assert again.thresholds == snn.thresholds and again.recipe == snn.recipe
    assert_equal(snn, again, inputs)
    again.save_pretrained(tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_model_only_its_owner_can_build(tmp_path: Path) -> None:
    snn = transpike.convert(owners_model(), [owners_inputs()])
    snn.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model="):
        transpike.load(tmp_path)
    other = owners_model(seed=5).train()  # another instance: its weights are replaced in a copy
    before = {name: value.clone() for name, value in other.state_dict().items()}
    again = transpike.load(tmp_path, model=other)
    assert_equal(snn, again, owners_inputs())
    assert other.training and again.source_module is not other
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    wrong = owners_model()
    wrong.third = nn.Linear(8, 4)
    with pytest.raises(CheckpointError, match="third.weight"):
        transpike.load(tmp_path, model=wrong)


class Typed(nn.Module):
    """Its buffers come first by name, and are of other types than its weights."""

    def __init__(self, weights: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("a_index", torch.arange(6))
        self.register_buffer(
            "b_scale", torch.rand(6, dtype=torch.float64 if weights is torch.float32 else torch.float32)
        )
        self.one, self.two = nn.Linear(6, 8, dtype=weights), nn.Linear(8, 3, dtype=weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x[:, self.a_index]).relu()) * self.b_scale[:3]


@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_every_tensor_keeps_its_type(weights: torch.dtype, tmp_path: Path) -> None:
    other = torch.float64 if weights is torch.float32 else torch.float32
    snn = transpike.convert(Typed(weights).eval(), [torch.randn(4, 6)], "ecmt")
    snn.save_pretrained(tmp_path)
    again = transpike.load(tmp_path, model=Typed(other))
    types = {name: tensor.dtype for name, tensor in snn.source_module.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in again.source_module.state_dict().items()} == types
    assert_equal(snn, again, torch.randn(4, 6))


def test_what_is_not_saved_keeps_its_type_where_parameters_do(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = Typed(torch.float32)
        model.register_buffer("c_fixed", torch.linspace(0.1, 1, 6, dtype=torch.float64), persistent=False)
        return model

    snn = transpike.convert(build().eval(), [torch.randn(4, 6)], "ecmt")
    snn.save_pretrained(tmp_path)
    assert transpike.load(tmp_path, model=build()).source_module.c_fixed.dtype == torch.float64


def test_frames_of_another_network_do_not_stay(tmp_path: Path) -> None:
    model, inputs = load_model(), digits()
    folder = transpike.convert(model, [inputs], "balanced").save_pretrained(tmp_path / "net")
    assert (folder / "frames.safetensors").is_file()
    transpike.convert(model, [inputs], "ecmt").save_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "thresholds.safetensors"]
    assert transpike.load(folder).recipe.name == "ecmt"


class Mixed(Masked):
    """Takes a pair, as recurrent cells do, and a table without a batch; one tensor is a view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", self.first.weight.detach()[:2])

    def forward(self, x: torch.Tensor, pair: Any, table: torch.Tensor, *, limit: float = 9.0) -> torch.Tensor:  # type: ignore[override]
        x = (x * pair[0] + pair[1] + table.sum(0) + self.part.sum()).clamp(max=limit)
        return self.third(self.second(self.first(x).relu()).relu())


def mixed_inputs(limit: float = 2.0) -> Any:
    """The table has two rows: as many as the samples a careless loader would make up."""
    torch.manual_seed(1)
    return torch.randn(4, 6), (torch.randn(4, 6), torch.randn(4, 6)), torch.randn(2, 6), {"limit": limit}


def test_a_call_of_nested_and_unbatched_tensors(tmp_path: Path) -> None:
    snn = transpike.convert(Mixed().eval(), [mixed_inputs()])
    snn.save_pretrained(tmp_path)
    assert_equal(snn, transpike.load(tmp_path, model=Mixed()), mixed_inputs())


def test_what_the_format_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="argument inf"):
        transpike.convert(Mixed().eval(), [mixed_inputs(math.inf)]).save_pretrained(tmp_path)
    snn = transpike.convert(owners_model(), [owners_inputs()])
    for value in (math.nan, {1, 2}):
        with pytest.raises(ConfigError, match=r"config\.json cannot hold"):
            snn.save_pretrained(tmp_path, extra={"data": value})
    model = owners_model()
    model.register_buffer("odd", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot hold a tensor.*complex128"):
        transpike.convert(model, [owners_inputs()]).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transpike.convert(load_model(), [digits()], "ecmt").save_pretrained(tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "net")


def test_three_files_and_no_calibration_data(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json", *sorted(config["files"])]
    assert config["calibration"] == {"samples": 4}
    weights = safetensors.torch.load_file(bundle / "model.safetensors")
    assert weights.keys() == load_model().state_dict().keys()
    pairs = safetensors.torch.load_file(bundle / "thresholds.safetensors")
    assert pairs.keys() == {site["name"] for site in config["sites"]}
    assert all(pair.shape == (2,) and pair.dtype == torch.float64 for pair in pairs.values())


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((bundle / "config.json").read_text())
    change(config)
    (bundle / "config.json").write_text(json.dumps(config))


def accept(bundle: Path) -> None:
    """Make the checksums those of the files that are there, as someone who means harm would."""
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle.glob("*.safetensors")}
    edit(bundle, put("files", sums))


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
    "deep config": (lambda b: (b / "config.json").write_text("[" * 100_000), "config.json is damaged"),
    "no finite number": (lambda b: edit(b, put("recipe", "steps", math.inf)), "Infinity is not a finite number"),
    "binary config": (lambda b: (b / "config.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "a list": (lambda b: (b / "config.json").write_text("[]"), "not a saved spiking network"),
    "another format": (lambda b: edit(b, put("format", "bert")), "not a saved spiking network"),
    "a later version": (lambda b: edit(b, put("format_version", 99)), "format version 99"),
    "a missing key": (lambda b: edit(b, lambda c: c.pop("recipe")), "lacks recipe"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), "lacks model.safetensors"),
    "no thresholds": (lambda b: (b / "thresholds.safetensors").unlink(), "lacks thresholds.safetensors"),
    "cut weights": (lambda b: cut(b / "model.safetensors"), "truncated"),
    "pickled weights": (lambda b: torch.save({}, b / "model.safetensors"), "truncated or replaced"),
    "unknown neuron": (lambda b: edit(b, put("recipe", "neuron", {"type": "magic"})), "unknown neuron 'magic'"),
    "no levels": (lambda b: edit(b, put("recipe", "neuron", "levels", 0)), "levels"),
    "percentile 2": (lambda b: edit(b, put("recipe", "range", "fraction", 2)), "percentile"),
    "another site": (lambda b: edit(b, put("sites", 0, "name", "elsewhere")), "elsewhere"),
    "another shape": (lambda b: edit(b, put("sites", 0, "shape", [None, 1])), "shapes or the order"),
    "a strange source": (lambda b: edit(b, put("source", {"kind": "url", "name": "x"})), "kind 'url'"),
    "no such timm model": (lambda b: edit(b, put("source", {"kind": "timm", "name": "vit_nowhere"})), "vit_nowhere"),
    "a source that reads": (
        lambda b: edit(
            b, put("source", {"kind": "timm", "name": "vit_tiny_patch16_224", "options": {"checkpoint_path": "x"}})
        ),
        "cannot take the option 'checkpoint_path'",
    ),
    "a call beyond": (lambda b: edit(b, put("call", "args", [{"tensor": 7}])), "signature"),
    "a call of nothing": (lambda b: edit(b, put("call", "args", [])), "signature.*every tensor"),
    "a fixed object": (lambda b: edit(b, put("call", "kwargs", {"a": {"value": [1]}})), "signature.*plain"),
    "a negative size": (lambda b: edit(b, put("inputs", 0, "shape", [None, -1])), "signature"),
    "a vast size": (lambda b: edit(b, put("inputs", 0, "shape", [10**20])), "signature"),
    "a size in words": (lambda b: edit(b, put("inputs", 0, "shape", "x")), "signature"),
    "no such dtype": (lambda b: edit(b, put("inputs", 0, "dtype", "nn")), "signature"),
    "a site without name": (lambda b: edit(b, lambda c: c["sites"][0].pop("name")), "site 0 has no name"),
    "a site fewer": (lambda b: edit(b, lambda c: c["sites"].pop()), "plan differs in sites"),
    "no batch": (lambda b: edit(b, put("batch_size", 0)), "batch_size cannot be 0"),
    "no samples": (lambda b: edit(b, put("calibration", {})), "calibration.samples"),
    **{
        f"{key} of another type": (lambda b, key=key: edit(b, put(key, True)), f"{key} cannot be True") for key in TYPES
    },
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_in_one_sentence(case: str, bundle: Path) -> None:
    damage, message = DAMAGE[case]
    damage(bundle)
    with pytest.raises(transpike.TranspikeError, match=message) as caught:
        transpike.load(bundle)
    assert "\n" not in str(caught.value)


PAIRS = {
    "nan": torch.tensor([math.nan, 1.0], dtype=torch.float64),
    "three": torch.ones(3, dtype=torch.float64),
    "complex": torch.ones(2, dtype=torch.complex64),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "none": None,
}


@pytest.mark.parametrize("case", PAIRS)
def test_unsound_thresholds_are_refused(case: str, bundle: Path) -> None:
    path, pair = bundle / "thresholds.safetensors", PAIRS[case]
    stored = safetensors.torch.load_file(path)
    name = sorted(stored)[0]
    stored.pop(name)
    safetensors.torch.save_file(stored if pair is None else {**stored, name: pair}, path)
    accept(bundle)
    with pytest.raises(ConfigError, match=f"site {name}"):
        transpike.load(bundle)


def test_a_threshold_of_no_site_is_refused(bundle: Path) -> None:
    path = bundle / "thresholds.safetensors"
    more = {"elsewhere": torch.ones(2, dtype=torch.float64)}
    safetensors.torch.save_file(safetensors.torch.load_file(path) | more, path)
    accept(bundle)
    with pytest.raises(ConfigError, match="'elsewhere', which is no site"):
        transpike.load(bundle)


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


CONTENTS: dict[str, Callable[[bytes, Path], bytes]] = {
    "cut": lambda content, target: content[:-9],
    "empty": lambda content, target: b"",
    "text": lambda content, target: b"not tensors at all",
    "pickle": lambda content, target: pickle.dumps(Bomb(target)),
}


@pytest.mark.parametrize("name", ["model.safetensors", "thresholds.safetensors"])
@pytest.mark.parametrize("case", CONTENTS)
def test_other_contents_under_a_right_checksum(case: str, name: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / name).write_bytes(CONTENTS[case]((bundle / name).read_bytes(), tmp_path / "ran"))
    accept(bundle)
    with pytest.raises(transpike.TranspikeError, match=name) as caught:
        transpike.load(bundle)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


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


@pytest.fixture(scope="module")
def another() -> transpike.SpikingModel:
    model = load_model()
    with torch.no_grad():
        model.head.bias += 1
    return transpike.convert(model, [digits()], "ecmt")


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_what_was_there(
    after: int, bundle: Path, another: transpike.SpikingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two tensor files meets it."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    write, calls = safetensors.torch.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > after:
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        write(*args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ConfigError, match="No space left"):
        another.save_pretrained(bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    transpike.load(bundle)


LIMITED = """
import resource, signal, sys, torch, transpike
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
snn = transpike.load(sys.argv[1])
for limit in (0, 2_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        snn.save_pretrained(sys.argv[1])
    except transpike.TranspikeError as error:
        print(error)
print(snn.simulate(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8), 3).outputs.tolist())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits on the size of files")
def test_another_process_with_no_room_to_write(bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    command = [sys.executable, "-c", LIMITED, str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    *errors, outputs = result.stdout.splitlines() or [result.stderr]
    assert result.returncode == 0, result.stderr
    assert len(errors) == 3 and all("cannot write" in e and "File too large" in e for e in errors)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    here = transpike.load(bundle).simulate(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8), 3).outputs
    assert json.loads(outputs) == here.tolist()


def test_a_half_overwritten_folder_does_not_load(bundle: Path, another: transpike.SpikingModel, tmp_path: Path) -> None:
    """As when a second save dies after the weights: the config still speaks of the old ones."""
    other = another.save_pretrained(tmp_path / "other")
    shutil.copy(other / "model.safetensors", bundle)
    with pytest.raises(ConfigError, match="not the file that was saved"):
        transpike.load(bundle)


def test_a_file_in_the_way(bundle: Path, tmp_path: Path) -> None:
    snn = transpike.load(bundle)
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="it is a file"):
        snn.save_pretrained(tmp_path / "taken")
    with pytest.raises(ConfigError, match="Not a directory"):
        snn.save_pretrained(tmp_path / "taken" / "below")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_in_the_way_of_the_last_file(bundle: Path, another: transpike.SpikingModel) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").mkdir()
    before = (bundle / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"config\.json: Is a directory"):
        another.save_pretrained(bundle)
    assert (bundle / "model.safetensors").read_bytes() == before and len(list(bundle.iterdir())) == 3


def test_nowhere() -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        transpike.load("no/such/folder/at/all")
