"""The embedded model and data: a Vision Transformer for 8x8 handwritten digits, nothing to download.

The images are scikit-learn's copy of the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
UCI Machine Learning Repository, 1998): 1797 images, grey levels 0..16. The weights are ours, trained on the train split
by `scripts/train_digits.py`. Parameters are named like those of timm's `VisionTransformer`, so timm loads the same
file; neither timm nor scikit-learn is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from transpike.errors import ConfigError

DATA_FILE = Path(__file__).with_name("digits.npz")
WEIGHTS_FILE = Path(__file__).with_name("digits_vit.safetensors")
SPLITS = ("train", "test")


class PatchEmbed(nn.Module):
    """Non-overlapping patches as tokens: [B, 1, 8, 8] -> [B, 16, C]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention on [B, N, C]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm Transformer block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsViT(nn.Module):
    """A pre-norm Vision Transformer: [B, 1, 8, 8] (grey level / 16) -> logits [B, 10]."""

    def __init__(self, *, width: int = 48, depth: int = 4, num_heads: int = 4, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width, patch=2)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 10)
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (1, 8, 8),
            "mean": (0.0,),
            "std": (1.0,),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "num_classes": 10,
            "classes": tuple("0123456789"),
        }

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def load_digits(split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """The images (uint8 [N, 8, 8], grey levels 0..16) and labels (int64 [N]) of one split.

    The model reads float [B, 1, 8, 8], grey level / 16.

    Raises: ConfigError if `split` is neither "train" (1297 images) nor "test" (500).
    """
    if split not in SPLITS:
        raise ConfigError(f"the digits have no split {split!r}; use one of {', '.join(SPLITS)}")
    with np.load(DATA_FILE, allow_pickle=False) as data:
        held_out = np.zeros(len(data["y"]), dtype=bool)
        held_out[data["test_index"]] = True
        chosen = held_out if split == "test" else ~held_out
        return data["x"][chosen], data["y"][chosen].astype(np.int64)


def build() -> DigitsViT:
    """The architecture with random weights, in training mode."""
    return DigitsViT()


def load_model() -> DigitsViT:
    """The trained model, in evaluation mode."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS_FILE))
    return model.eval()
