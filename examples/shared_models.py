"""Other people's small pretrained models, rebuilt so that their published weights load strictly.

    cd examples && transpike eval shared_models:mnist_vit --checkpoint vit_mnist_gpu.safetensors --data mnist_test.npz

Every factory takes no argument and returns the architecture with random weights; parameter names are those of the
original code, apart from a possible common `module.` prefix. Image models carry timm's kind of `pretrained_cfg`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def image_cfg(
    size: tuple[int, int, int], *, mean: tuple[float, ...], std: tuple[float, ...], num_classes: int
) -> dict[str, Any]:
    """Preprocessing of an image model: scale to 0..1, subtract the mean, divide by the standard deviation."""
    scaling = {"input_size": size, "mean": mean, "std": std}
    return {**scaling, "crop_pct": 1.0, "interpolation": "bilinear", "num_classes": num_classes}


# --- Vision Transformer for MNIST (lucidrains' vit-pytorch) ---


class Patches(nn.Module):
    """[B, 1, H, W] -> [B, tokens, patch * patch], pixels of a patch in the order (row, column, channel)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        p = self.patch
        x = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
        return x.reshape(batch, (height // p) * (width // p), p * p * channels)


class PreNorm(nn.Module):
    """fn(norm(x))."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class ViTAttention(nn.Module):
    """Self-attention whose heads may be wider together than the model."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_width**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (t.reshape(batch, tokens, self.heads, -1).transpose(1, 2) for t in self.to_qkv(x).chunk(3, dim=-1))
        attention = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1)
        return self.to_out((attention @ v).transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden, width), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ViTLayers(nn.Module):
    """The residual stack; without `mlp_width`, attention only."""

    def __init__(self, width: int, depth: int, heads: int, head_width: int, mlp_width: int | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            attention = PreNorm(width, ViTAttention(width, heads, head_width))
            if mlp_width is None:
                layers.append(attention)
            else:
                layers.append(nn.ModuleList([attention, PreNorm(width, FeedForward(width, mlp_width))]))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for branch in layer if isinstance(layer, nn.ModuleList) else (layer,):
                x = x + branch(x)
        return x


class ViT(nn.Module):
    """[B, 1, 28, 28] -> logits [B, num_classes], read from the class token."""

    def __init__(
        self, *, patch: int, depth: int, heads: int, head_width: int, mlp_width: int | None, num_classes: int
    ) -> None:
        super().__init__()
        width = 64
        self.to_patch_embedding = nn.Sequential(Patches(patch), nn.Linear(patch * patch, width))
        self.pos_embedding = nn.Parameter(torch.randn(1, (28 // patch) ** 2 + 1, width))
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.transformer = ViTLayers(width, depth, heads, head_width, mlp_width)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
        self.pretrained_cfg = image_cfg((1, 28, 28), mean=(0.1307,), std=(0.3081,), num_classes=num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_patch_embedding(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embedding
        return self.mlp_head(self.transformer(x)[:, 0])


def mnist_vit() -> ViT:
    """Digits 0..9: 6 layers, 4 heads of 64 (wider than the model), patch 4."""
    return ViT(patch=4, depth=6, heads=4, head_width=64, mlp_width=128, num_classes=10)


def mnist_vit_3class() -> ViT:
    """Digits 0..2: 4 layers, patch 7."""
    return ViT(patch=7, depth=4, heads=4, head_width=16, mlp_width=128, num_classes=3)


def mnist_vit_3class_attn_only() -> ViT:
    """Digits 0..2: 4 layers of attention and no MLP."""
    return ViT(patch=7, depth=4, heads=4, head_width=16, mlp_width=None, num_classes=3)


# --- ResNet-20 for CIFAR-10 (akamaster's pytorch_resnet_cifar10) ---


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut subsamples and pads with zero channels (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.changes_shape = stride != 1 or channels_in != channels
        self.pad = channels // 4

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.changes_shape:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """[B, 3, 32, 32] -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, stride=1)
        self.layer2 = self.stage(16, 32, stride=2)
        self.layer3 = self.stage(32, 64, stride=2)
        self.linear = nn.Linear(64, 10)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.pretrained_cfg = image_cfg((3, 32, 32), mean=mean, std=std, num_classes=10)

    @staticmethod
    def stage(channels_in: int, channels: int, *, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, BasicBlock(channels, channels, 1), BasicBlock(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def resnet20_cifar10() -> ResNet20:
    """CIFAR-10, classes in alphabetical order."""
    return ResNet20()


# --- Sorting digits with a GPT (Karpathy's minGPT, gpt-nano) ---


class NewGELU(nn.Module):
    """The tanh approximation of GELU, written out as in minGPT."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class CausalSelfAttention(nn.Module):
    """Masked attention with explicit products; `bias` is the lower triangular mask [1, 1, N, N], saved as a weight."""

    bias: Tensor

    def __init__(self, width: int, heads: int, block_size: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size))
        self.n_head = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.size()
        q, k, v = self.c_attn(x).split(width, dim=2)
        q, k, v = (t.view(batch, tokens, self.n_head, width // self.n_head).transpose(1, 2) for t in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.bias[:, :, :tokens, :tokens] == 0, float("-inf")), dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(batch, tokens, width))


class GPTBlock(nn.Module):
    """Pre-norm decoder block."""

    def __init__(self, width: int, heads: int, block_size: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads, block_size)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "act": NewGELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.mlp["act"](self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    """Token ids int64 [B, N], N <= block_size -> logits [B, N, vocabulary]."""

    def __init__(self, *, depth: int, width: int, heads: int, vocabulary: int, block_size: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(block_size, width),
                "h": nn.ModuleList(GPTBlock(width, heads, block_size) for _ in range(depth)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        positions = torch.arange(idx.shape[1], device=idx.device).unsqueeze(0)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)
        for block in self.transformer["h"]:  # type: ignore[union-attr]
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def mingpt_sorter() -> GPT:
    """Sorts six digits of {0, 1, 2}: 3 layers, width 48, context 11; weights written by `prepare_shared.py`."""
    return GPT(depth=3, width=48, heads=3, vocabulary=3, block_size=11)


# --- Travelling salesman: the encoder of Kool et al., "Attention, Learn to Solve Routing Problems!" ---


class SkipConnection(nn.Module):
    """x + module(x)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


class MultiHeadAttention(nn.Module):
    """Self-attention with one weight matrix per head: [B, N, C] -> [B, N, C]."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        key, scale = width // heads, width**-0.5
        self.W_query = nn.Parameter(scale * torch.randn(heads, width, key))
        self.W_key = nn.Parameter(scale * torch.randn(heads, width, key))
        self.W_val = nn.Parameter(scale * torch.randn(heads, width, key))
        self.W_out = nn.Parameter(scale * torch.randn(heads, key, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        q, k, v = x @ self.W_query, x @ self.W_key, x @ self.W_val
        attention = (q @ k.transpose(-1, -2) / math.sqrt(k.shape[-1])).softmax(dim=-1)
        return (attention @ v @ self.W_out).sum(dim=1)


class Normalization(nn.Module):
    """BatchNorm over all nodes of all graphs, by merging batch and nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalizer = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalizer(x.reshape(-1, x.shape[-1])).view(x.shape)


class GraphAttentionEncoder(nn.Module):
    """Post-norm Transformer encoder without positions."""

    def __init__(self, depth: int, heads: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    SkipConnection(MultiHeadAttention(heads, width)),
                    Normalization(width),
                    SkipConnection(nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))),
                    Normalization(width),
                )
                for _ in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TSPEncoder(nn.Module):
    """Coordinates in the unit square [B, N, 2] -> node embeddings [B, N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.init_embed = nn.Linear(2, 128)
        self.embedder = GraphAttentionEncoder(depth=3, heads=8, width=128, hidden=512)

    def forward(self, coordinates: Tensor) -> Tensor:
        return self.embedder(self.init_embed(coordinates))


def tsp_encoder() -> TSPEncoder:
    """3 layers, 8 heads; weights without the decoder's are written by `prepare_shared.py`."""
    return TSPEncoder()
