"""What both sides share: models, samples, the split and timing. Needs torch, torchvision, safetensors and Pillow.

python common.py DATA_DIR > split.json    draws the split
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNTS = {"vit": (25, 100), "resnet20": (256, 500)}  # (calibrate, evaluate)
BATCH = {"vit": 4, "resnet20": 8}
MEASURED = 5  # timed pairs of runs
THREADS = 1
FOLDERS = {"vit": "imagenet-sample-224", "resnet20": "cifar10/cifar10_test_jpg.tar"}

# --- models ---


def import_torchvision() -> Any:
    """torchvision; where its compiled operators do not load beside a CPU torch, their schemas alone are declared."""
    try:
        import torchvision
    except RuntimeError:
        declared = torch.library.Library("torchvision", "DEF")
        declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.declared = declared  # type: ignore[attr-defined]
        import torchvision
    return torchvision


WIDTHS = {"DeiT-Tiny": 192, "ViT-S/16": 384, "ViT-B/16": 768}  # with heads of 64


def untrained_vit(blocks: int, width: int = WIDTHS["DeiT-Tiny"]) -> nn.Module:
    """Random weights."""
    torchvision = import_torchvision()
    model = torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=blocks, num_heads=width // 64, hidden_dim=width, mlp_dim=4 * width,
        num_classes=1000, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)  # torchvision's is zero: no prediction to calibrate by
    return model.eval().requires_grad_(False)


def vit(data: Path) -> nn.Module:
    """DeiT-Tiny/16 at 224 pixels as torchvision's VisionTransformer (LayerNorm epsilon 1e-6 in both)."""
    model = untrained_vit(12)
    published = load_file(data / "deit-tiny" / "deit_tiny_patch16_224.safetensors")
    model.load_state_dict({torchvision_key(key): value for key, value in published.items()})
    return model.eval().requires_grad_(False)


RENAMED = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj", "conv_proj"),
    ("blocks.", "encoder.layers.encoder_layer_"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("attn.qkv.", "self_attention.in_proj_"),
    ("attn.proj", "self_attention.out_proj"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.3"),
)


def torchvision_key(key: str) -> str:
    """The name of a timm ViT's parameter in torchvision's VisionTransformer."""
    if key.startswith("norm."):
        return f"encoder.ln.{key.removeprefix('norm.')}"
    if key.startswith("head."):
        return f"heads.{key}"
    for old, new in RENAMED:
        key = key.replace(old, new)
    return key


def shortcut(channels_in: int, channels: int) -> nn.Conv2d:
    """Option A (every second pixel, zero channels on both sides) as a 1x1 convolution of fixed zeros and ones, because
    RateCodingRecipe takes no F.pad."""
    conv = nn.Conv2d(channels_in, channels, 1, stride=2, bias=False)
    weight = torch.zeros(channels, channels_in, 1, 1)
    weight[channels // 4 : channels // 4 + channels_in, :, 0, 0] = torch.eye(channels_in)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, every ReLU a module of its own, as RateCodingRecipe needs it."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        stride = 1 if channels_in == channels else 2
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = None if stride == 1 else shortcut(channels_in, channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNet20(nn.Module):
    """[B, 3, 32, 32] -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16), BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32), BasicBlock(32, 32), BasicBlock(32, 32))
        self.layer3 = nn.Sequential(BasicBlock(32, 64), BasicBlock(64, 64), BasicBlock(64, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.linear(self.flatten(self.pool(x)))


def resnet20(data: Path) -> nn.Module:
    model = ResNet20()
    published = load_file(data / "resnet-cifar10" / "resnet20-12fca82f.safetensors")
    missing = model.load_state_dict({key.removeprefix("module."): value for key, value in published.items()}, False)
    if missing.unexpected_keys or [key for key in missing.missing_keys if "shortcut" not in key]:
        raise SystemExit(f"the checkpoint does not fit ResNet-20: {missing}")
    return model.eval().requires_grad_(False)


MODELS: dict[str, Callable[[Path], nn.Module]] = {"vit": vit, "resnet20": resnet20}

# --- samples ---


def names_in(data: Path, name: str) -> list[str]:
    path = data / FOLDERS[name]
    if path.is_dir():
        return sorted(item.name for item in path.glob("*.jpg"))
    with tarfile.open(path) as archive:
        return sorted(member.name for member in archive if member.name.endswith(".jpg"))


def draw_split(data: Path, seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """Disjoint random calibration and evaluation samples by file name."""
    split = {}
    for name, (calibrate, evaluate) in COUNTS.items():
        drawn = random.Random(seed).sample(names_in(data, name), calibrate + evaluate)
        split[name] = {"calibrate": sorted(drawn[:calibrate]), "evaluate": sorted(drawn[calibrate:])}
    return split


def read_split(name: str) -> dict[str, list[str]]:
    split = json.loads((HERE / "split.json").read_text(encoding="utf-8"))[name]
    if set(split["calibrate"]) & set(split["evaluate"]):
        raise SystemExit(f"split.json: samples of {name} both calibrate and are evaluated")
    return split


def read_images(data: Path, name: str, files: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(inputs [N, 3, H, W], labels [N]); images are used as they are, at their own size."""
    if name == "vit":
        contents = [(data / FOLDERS[name] / file).read_bytes() for file in files]
        labels = [int(file.split("_")[0]) for file in files]
    else:
        classes = sorted({file.split("/")[-2] for file in names_in(data, name)})
        with tarfile.open(data / FOLDERS[name]) as archive:
            contents = [archive.extractfile(file).read() for file in files]  # type: ignore[union-attr]
        labels = [classes.index(file.split("/")[-2]) for file in files]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (scaled - mean) / std, torch.tensor(labels)


def batches(data: Path, name: str, files: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    inputs, labels = read_images(data, name, files)
    yield from zip(inputs.split(BATCH[name]), labels.split(BATCH[name]), strict=True)


def described(name: str) -> dict[str, Any]:
    calibrate, evaluate = COUNTS[name]
    return {"samples": evaluate, "calibration": calibrate, "batch": BATCH[name]}


def dense_behind_spikes(name: str) -> int:
    """Multiply-accumulates per sample of the source layers that read spikes of SpikingJelly's encoders or neurons:
    projections to q, k and v, both MLP layers and the head; every convolution but the first, and the head."""
    if name == "vit":
        return 12 * 197 * 192 * (3 * 192 + 2 * 768) + 192 * 1000
    stages = ((16, 16, 32), (16, 32, 16), (32, 64, 8))  # channels in, channels, side
    blocks = sum(side**2 * 9 * (before * width + 5 * width**2) for before, width, side in stages)
    return blocks + sum(side**2 * before * width for before, width, side in stages[1:]) + 64 * 10


# --- timing and environment ---


def timed(source: Callable[[], Any], converted: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of both, run in turn after one run each that is not counted; medians and their ratio."""
    source(), converted()
    seconds: dict[str, list[float]] = {"source": [], "converted": []}
    for _ in range(MEASURED):
        for key, run in (("source", source), ("converted", converted)):
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {**medians, "ratio": medians["converted"] / medians["source"], "runs": seconds}


def environment(*packages: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "numpy", *packages)},
        "torch_build": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    import sys

    print(json.dumps(draw_split(Path(sys.argv[1])), indent=1))
