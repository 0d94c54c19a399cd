"""Reading safetensors files and folders, and refusing everything else with the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transpike.errors import CheckpointError
from transpike.zoo.source import reason

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file, of a folder with `model.safetensors`, or of a sharded index.

    Raises: CheckpointError if it is missing, corrupt, truncated or pickled.
    """
    path = path.expanduser()
    if path.is_dir():
        path = _within(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a .safetensors file, or a folder with {SINGLE}")
    return _read_shards(path) if path.name.endswith(".index.json") else _read_file(path)


def _within(folder: Path) -> Path:
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            return folder / name
    pickled = sorted(file for file in folder.iterdir() if file.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise CheckpointError(_refusal(pickled[0]))
    raise CheckpointError(f"the folder {folder} has neither {SINGLE} nor {INDEX}; name the .safetensors file itself")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() in PICKLED_SUFFIXES or _starts_like_a_pickle(path):
            raise CheckpointError(_refusal(path))
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is corrupt, truncated or no safetensors file ({reason(error)}); copy or download it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
        outside = [name for name in shards if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is corrupt or no index of shards ({reason(error)}); copy it again") from error
    if outside:
        raise CheckpointError(f"{index} names the shard {outside[0]!r}, which is not a file of its own folder")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} shards (first {missing[0]}); copy them too"
        )
    tensors: dict[str, Tensor] = {}
    for name in shards:
        tensors |= _read_file(index.parent / name)
    _check_index(index, weight_map, tensors)
    return tensors


def _check_index(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise CheckpointError(
            f"{len(absent)} tensors that {index} lists are in none of its shards (first {absent[0]}); copy it again"
        )


def _starts_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file begins with its header's length, whose first byte may well be 0x80, and then "{".
    return head[8:] != b"{" and head.startswith((b"PK\x03\x04", b"\x80"))


def _refusal(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    target = target if target != path.name else f"converted-{target}"
    command = (
        "import torch, safetensors.torch as s; "
        f"w = torch.load({path.name!r}, map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {target!r})"
    )
    return (
        f"{path} is a pickled checkpoint, which can run code when it is opened, so it is not; convert it on a machine "
        f'you trust: python -c "{command}" (with w = w["model"] or w["state_dict"] in between where weights lie deeper)'
    )
