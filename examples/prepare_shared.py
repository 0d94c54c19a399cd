"""Turn the shared models and data into the plain files that `transpike eval` and `transpike convert` read.

    python examples/prepare_shared.py DATA_DIR OUT_DIR

Writes mingpt_sorter.safetensors, sorter_729.npz, mnist_3class_test.npz and tsp_encoder.safetensors.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from transpike.files import write_atomically

ENCODER_PARTS = ("init_embed.", "embedder.")


def decode_json(path: Path) -> dict[str, Tensor]:
    """Tensors of a JSON file {name: {"shape", "dtype", "data": base64 of little-endian float32}}, names kept."""
    content = json.loads(path.read_text())
    return {
        name: torch.frombuffer(bytearray(base64.b64decode(entry["data"])), dtype=torch.float32).reshape(entry["shape"])
        for name, entry in content.items()
        if name != "config"
    }


def sorter_data() -> dict[str, np.ndarray]:
    """All 729 problems: x, y int64 [729, 11].

    x is six digits and the first five of them sorted; y[i] is what follows x[:i+1], -100 where nothing is to be told.
    """
    digits = np.array(list(itertools.product(range(3), repeat=6)), dtype=np.int64)
    in_order = np.sort(digits, axis=1)
    unscored = np.full((len(digits), 5), -100, dtype=np.int64)
    return {"x": np.hstack([digits, in_order[:, :5]]), "y": np.hstack([unscored, in_order])}


def sorter_calibration() -> dict[str, np.ndarray]:
    """256 unlabelled random digit sequences: the 729 problems are all there are, and none is to calibrate."""
    return {"x": np.random.default_rng(0).integers(0, 3, (256, 11))}


def three_classes(path: Path) -> dict[str, np.ndarray]:
    """The images of digits 0, 1 and 2."""
    with np.load(path, allow_pickle=False) as data:
        chosen = data["y"] < 3
        return {"x": data["x"][chosen], "y": data["y"][chosen]}


def encoder_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the TSP encoder, without those of the decoder."""
    return {name: value for name, value in load_file(path).items() if name.startswith(ENCODER_PARTS)}


def as_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a compressed .npz file with arrays x and y."""
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    return archive.getvalue()


def write(path: Path, content: bytes) -> None:
    """Replace `path` in one go, so that a reader never sees half a file."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def prepare(data_dir: Path, out_dir: Path) -> list[Path]:
    """Write the four files and return their paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    files = {
        "mingpt_sorter.safetensors": save(decode_json(data_dir / "nanogpt-sort" / "gpt-nano-sort-model.json")),
        "sorter_729.npz": as_npz(sorter_data()),
        "sorter_calibration.npz": as_npz(sorter_calibration()),
        "mnist_3class_test.npz": as_npz(three_classes(data_dir / "mnist" / "mnist_test.npz")),
        "tsp_encoder.safetensors": save(encoder_weights(data_dir / "attention-tsp" / "tsp_20.safetensors")),
    }
    for name, content in files.items():
        write(out_dir / name, content)
    return [out_dir / name for name in files]


def main() -> None:
    """Read the two folders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    arguments = parser.parse_args()
    for path in prepare(arguments.data_dir, arguments.out_dir):
        print(path)


if __name__ == "__main__":
    main()
