"""A timm Vision Transformer as the paper runs it, step by step, written out: the opponent in benchmarks/models.py.

Every nonlinearity is an expectation compensation module that evaluates F twice a step on the sum of its input; every
product keeps the sums of its operands and their product and computes three products a step; every neuron keeps a
membrane and scans its levels from the largest down. Nothing is folded, compiled or shared between steps. Source: arXiv
2502.21193; written from the paper, in the most direct PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensor = torch.Tensor


class Neuron:
    """n levels per sign, theta 2^-k; emits the nearest one at or above the cutoff."""

    def __init__(self, positive: float, negative: float, levels: int = 8) -> None:
        self.positive, self.negative, self.levels = positive, negative, levels
        self.membrane: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.membrane = x if self.membrane is None else self.membrane + x
        emitted = torch.zeros_like(x)
        silent = torch.ones_like(x, dtype=torch.bool)
        for k in range(self.levels):
            share = 2.0**-k
            least = share if k == self.levels - 1 else 0.75 * share  # half-way to the next level
            for theta, sign in ((self.positive, 1.0), (self.negative, -1.0)):
                fires = silent & (sign * self.membrane >= theta * least) & (theta > 0)
                emitted = torch.where(fires, sign * theta * share, emitted)
                silent = silent & ~fires
        self.membrane = self.membrane - emitted
        return emitted


class Compensated:
    """y(t) = t F(S(t)/t) - (t-1) F(S(t-1)/(t-1))."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.t = function, 0

    def __call__(self, x: Tensor) -> Tensor:
        before = self.t * self.function(self.sum / self.t) if self.t else None
        self.sum = self.sum + x if self.t else x
        self.t += 1
        after = self.t * self.function(self.sum / self.t)
        return after if before is None else after - before


class Product:
    """The mean of its output is the product of the means of its inputs: three products a step."""

    def __init__(self) -> None:
        self.t = 0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if self.t == 0:
            self.a, self.b, before = torch.zeros_like(a), torch.zeros_like(b), None
            self.product = torch.zeros(())
        else:
            before = self.product / self.t
        self.product = self.product + a @ b + a @ self.b + self.a @ b
        self.a, self.b, self.t = self.a + a, self.b + b, self.t + 1
        after = self.product / self.t
        return after if before is None else after - before


class Block:
    def __init__(self, block: Any, neuron: Callable[[str], Neuron]) -> None:
        self.block = block
        self.norm1, self.norm2 = Compensated(block.norm1), Compensated(block.norm2)
        self.scores, self.mixed = Product(), Product()
        self.softmax = Compensated(lambda scores: torch.softmax(scores * block.attn.scale, -1))
        self.gelu = Compensated(block.mlp.act)
        names = ("attn.qkv:input", "attn:query", "attn:key", "attn:softmax", "attn:value", "attn.proj:input")
        self.neurons = {name: neuron(name) for name in (*names, "mlp.fc1:input", "mlp.fc2:input")}

    def __call__(self, x: Tensor) -> Tensor:
        attention, n = self.block.attn, self.neurons
        samples, tokens, width = x.shape
        qkv = attention.qkv(n["attn.qkv:input"](self.norm1(x)))
        q, k, v = qkv.reshape(samples, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = n["attn:query"](q), n["attn:key"](k), n["attn:value"](v)
        weights = n["attn:softmax"](self.softmax(self.scores(q, k.transpose(-2, -1))))
        mixed = self.mixed(weights, v).transpose(1, 2).reshape(samples, tokens, width)
        x = x + attention.proj(n["attn.proj:input"](mixed))
        hidden = self.gelu(self.block.mlp.fc1(n["mlp.fc1:input"](self.norm2(x))))
        return x + self.block.mlp.fc2(n["mlp.fc2:input"](hidden))


@torch.no_grad()
def step_by_step(model: Any, images: Tensor, thresholds: Mapping[str, tuple[float, float]], steps: int) -> Tensor:
    """The mean of the output after each step, [T, B, C]; `thresholds` (of each sign) by site name."""
    blocks = [
        Block(block, lambda name, i=i: Neuron(*thresholds[f"blocks.{i}.{name}"]))  # type: ignore[misc]
        for i, block in enumerate(model.blocks)
    ]
    norm, head = Compensated(model.norm), Neuron(*thresholds["head:input"])
    total, outputs = torch.zeros(()), []
    for t in range(1, steps + 1):
        x = model._pos_embed(model.patch_embed(images))
        for block in blocks:
            x = block(x)
        total = total + model.head(head(norm(x)[:, 0]))
        outputs.append(total / t)
    return torch.stack(outputs)
