"""Checkpoints: what fits is loaded exactly, what does not is refused by name, and nothing is half-loaded."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transpike.errors import CheckpointError
from transpike.zoo import check_finite, load_checkpoint


def _mlp(*, hidden: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2))


def _copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(model: nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_checkpoint_loads_whatever_its_prefix(tmp_path: Path, prefix: str) -> None:
    source, target = _mlp(), _mlp()
    save_file({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_checkpoint(target, tmp_path / "w.safetensors")
    assert _same(target, source.state_dict())


def test_checkpoint_keeps_a_prefix_that_belongs_to_the_model(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"model": _mlp()}), nn.ModuleDict({"model": _mlp()})
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_checkpoint(target, tmp_path / "w.safetensors")
    assert _same(target, source.state_dict())


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    weight_map = {}
    for number, name in enumerate(tensors):
        shard = f"model-{number % 2 + 1:05}-of-00002.safetensors"
        weight_map[name] = shard
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_checkpoint_in_shards(tmp_path: Path) -> None:
    source, target = _mlp(), _mlp()
    _write_shards(tmp_path, source.state_dict())
    load_checkpoint(target, tmp_path)
    assert _same(target, source.state_dict())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 shards"):
        load_checkpoint(target, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0.weight": "../w.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file of its own folder"):
        load_checkpoint(target, index)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(target, tmp_path)


class Tied(nn.Module):
    """Two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)


def test_tied_tensors_need_be_stored_once(tmp_path: Path) -> None:
    stored = torch.randn(5, 4)
    path = tmp_path / "w.safetensors"
    save_file({"embed.weight": stored, "positions": torch.arange(3)}, path)
    model = Tied()
    load_checkpoint(model, path)
    assert torch.equal(model.head.weight, stored)
    save_file({"embed.weight": stored, "head.weight": stored + 1}, path)
    with pytest.raises(CheckpointError, match=r"1 tensor \(head.weight: differs from embed.weight in the file"):
        load_checkpoint(model, path)
    save_file({"embed.weight": stored, "positions": torch.arange(3) + 1}, path)
    with pytest.raises(CheckpointError, match=r"1 tensor \(positions\) unexpected"):
        load_checkpoint(model, path)


def test_another_architecture_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    stored = _copies(_mlp(hidden=6))
    stored["extra"] = stored.pop("3.bias")
    save_file(stored, tmp_path / "w.safetensors")
    model = _mlp()
    before = _copies(model)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "1 tensor (3.bias) missing" in message
    assert "1 tensor (extra) unexpected" in message
    assert "7 tensors (0.weight: float32 [6, 4] in the file, float32 [8, 4] in the model, " in message
    assert message.count(" in the model") == 5
    assert "\n" not in message
    assert _same(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_checkpoint_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    stored = _copies(_mlp())
    stored["3.weight"][1, 2] = value
    save_file(stored, tmp_path / "w.safetensors")
    model = _mlp()
    before = _copies(model)
    with pytest.raises(CheckpointError, match=r"NaN or Inf in 1 tensor \(3.weight\)"):
        load_checkpoint(model, tmp_path / "w.safetensors")
    assert _same(model, before)


def test_checkpoint_that_overflows_the_model_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.full((2, 2), 1e6), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"Inf in 1 tensor \(weight\)"):
        load_checkpoint(nn.Linear(2, 2).half(), tmp_path / "w.safetensors")


def test_integers_are_not_weights(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"weight: int8 \[2, 2\] in the file, float32 \[2, 2\]"):
        load_checkpoint(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_check_finite_allows_masks_only() -> None:
    model = _mlp()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(model)
    model[1].running_var[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"1 tensor \(1.running_var\)"):
        check_finite(model)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(_mlp().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(_mlp(), path)


def test_garbage_and_absence_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"certainly not a tensor, nor a header")
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(_mlp(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(_mlp(), tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        load_checkpoint(_mlp(), tmp_path)


class Bomb:
    """What a malicious pickle does."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors", "w"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str, zipped: bool) -> None:
    witness = tmp_path / "executed"
    if zipped:
        torch.save(Bomb(witness), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(witness)))
    with pytest.raises(CheckpointError, match=r"pickled.*weights_only=True.*save_file"):
        load_checkpoint(_mlp(), tmp_path / name)
    assert not witness.exists()


def test_the_advice_on_pickles_works(tmp_path: Path) -> None:
    source, target = _mlp(), _mlp()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(target, tmp_path / "w.pt")
    code = str(caught.value).split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    load_checkpoint(target, tmp_path / "w.safetensors")
    assert _same(target, source.state_dict())


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    wanted = 0x80
    for padding in range(600):
        save_file(_mlp().state_dict(), path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == wanted:
            break
    assert path.read_bytes()[0] == wanted
    load_checkpoint(_mlp(), path)
