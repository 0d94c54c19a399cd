"""A stranger's working directory for the tests of the command line: models, data, and things that are wrong."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from transpike.zoo.digits import WEIGHTS_FILE

FACTORY = """
import torch
from torch import nn
class Small(nn.Module):
    pretrained_cfg = dict(input_size=(1, 6, 6), mean=(0.0,), std=(1.0,), crop_pct=1.0, interpolation="bilinear")
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        first, second, third = nn.Linear(36, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.body = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)
    def forward(self, x):
        return self.body(x)
class Order(nn.Module):
    def forward(self, x):
        return x.sort(-1).values
class Strange(Small):
    def __init__(self):
        super().__init__()
        self.order = Order()
    def forward(self, x):
        return self.body[5](self.body[3](self.order(self.body[1](x.flatten(1)))))
class Branching(Small):
    def forward(self, x):
        y = self.body(x)
        return y if y.sum() > 0 else -y
class Tokens(nn.Module):
    def __init__(self, axis):
        super().__init__()
        torch.manual_seed(0)
        self.axis, self.first, self.second, self.third = axis, nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    def forward(self, x):
        x = self.second(self.first(x).relu())
        return self.third((x - x.mean(self.axis, keepdim=True)).relu())
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(7, 4), nn.Linear(4, 8), nn.Linear(8, 3)
    def forward(self, input_ids):
        return self.last(self.first(self.table(input_ids.view(-1, 5))).relu().mean(1))
def words():
    return Words().eval()
def tokens_first():
    return Tokens(0).eval()
def batch_first():
    return Tokens(1).eval()
def make():
    return Small().eval()
def strange():
    return Strange().eval()
def branching():
    return Branching().eval()
def fails():
    raise RuntimeError("boom")
def not_a_model():
    return 3
"""


def furnish(folder: Path) -> None:
    """mine.py, .npz files of 6x6 images for it, and image folders."""
    (folder / "mine.py").write_text(FACTORY)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (24, 6, 6), dtype=np.uint8), np.arange(24) % 3
    np.savez(folder / "data.npz", x=images, y=labels)
    np.savez(folder / "other.npz", x=images[::-1] // 2)
    np.savez(folder / "far.npz", x=images, y=labels + 1)
    np.savez(folder / "wide.npz", x=random.random((20, 1, 7, 7), dtype=np.float32), y=np.arange(20) % 3)
    for name, value in {"nan": np.nan, "inf": np.inf}.items():
        np.savez(folder / f"{name}.npz", x=np.full((4, 1, 6, 6), value, np.float32), y=labels[:4])
    np.savez(folder / "tokens.npz", x=random.random((10, 4, 5), dtype=np.float32), y=random.integers(0, 3, (10, 4)))
    ids = random.integers(0, 7, (8, 5))
    np.savez(folder / "ids.npz", x=ids)
    np.savez(folder / "beyond.npz", x=np.where(np.arange(8)[:, None] == 6, 9, (ids + 1) % 7))
    np.savez(folder / "one.npz", x=images[:1], y=labels[:1])
    (folder / "junk.npz").write_bytes(b"junk")
    (folder / "empty").mkdir()
    pictures(folder / "images", 6)
    with tarfile.open(folder / "images.tar", "w") as archive:
        archive.add(folder / "images", "images")


def pictures(folder: Path, size: int, count: int = 3, *, seed: int = 1) -> None:
    """A folder of small PNGs in three classes."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for name in ("cat", "dog", "owl"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def checkpoints(folder: Path) -> None:
    """Checkpoints of the digits model with something wrong in each."""
    weights = safetensors.torch.load_file(WEIGHTS_FILE)
    for name in ("pickled.pt", "pickled.bin"):
        torch.save(weights, folder / name)
    (folder / "cut.safetensors").write_bytes(Path(WEIGHTS_FILE).read_bytes()[:5000])
    (folder / "nothing.safetensors").write_bytes(b"")
    safetensors.torch.save_file({**weights, "head.bias": weights["head.bias"] * torch.nan}, folder / "nan.safetensors")
    safetensors.torch.save_file({"stem.weight": torch.ones(2)}, folder / "alien.safetensors")
