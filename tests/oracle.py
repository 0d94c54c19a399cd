"""Slow and obvious twins of what transpike computes fast: neurons, compensation, counters and quantiles, by loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch

from transpike.types import Threshold

Quantiser = Callable[[float], float]

# --- neurons ---------------------------------------------------------------------------------------------------------


def nearest_level(potential: float, threshold: Threshold, levels: int, cutoff: float) -> float:
    """MultiThreshold: the level theta 2^-k nearest to m, the larger one on a tie; 0 below cutoff x smallest level."""
    theta = threshold.positive if potential > 0 else threshold.negative
    if potential == 0 or theta <= 0:
        return 0.0
    size, ladder = abs(Fraction(potential)), [Fraction(theta) / 2**k for k in range(levels)]
    if size < Fraction(cutoff) * ladder[-1]:
        return 0.0
    best = ladder[0]
    for level in ladder[1:]:
        if abs(size - level) < abs(size - best):
            best = level
    return math.copysign(float(best), potential)


def published_level(potential: float, threshold: Threshold, levels: int) -> float:
    """PublishedMultiThreshold: from the largest level down, positive sign first, the first one that is reached."""
    for k in reversed(range(levels)):
        reach = Fraction(2) ** k - Fraction(1, 2)
        if Fraction(potential) >= Fraction(threshold.positive) * reach:
            return threshold.positive * 2.0**k
        if -Fraction(potential) >= Fraction(threshold.negative) * reach:
            return -threshold.negative * 2.0**k
    return 0.0


def digit_level(potential: float, threshold: Threshold, levels: int) -> float:
    """FewSpikes: the largest level theta 2^-k that |m| and half a smallest level reach, 0 where they reach none."""
    theta = threshold.positive if potential > 0 else threshold.negative
    if potential == 0 or theta <= 0:
        return 0.0
    for k in range(levels):
        size, level = abs(Fraction(potential)) + Fraction(theta) / 2**levels, Fraction(theta) / 2**k
        if size > level or (size == level and k < levels - 1):  # a tie at the smallest level stays silent
            return math.copysign(theta * 2.0**-k, potential)
    return 0.0


def one_of_a_window(potential: float, threshold: Threshold, levels: int) -> float:
    """Parallel: one spike of theta / T where half of it is reached, of either sign that has levels; down at a tie."""
    unit = Fraction(max(threshold.positive, threshold.negative)) / levels
    if threshold.positive > 0 and Fraction(potential) >= unit / 2:
        return float(unit)
    return -float(unit) if threshold.negative > 0 and Fraction(potential) < -unit / 2 else 0.0


def each(quantiser: Quantiser, potential: torch.Tensor) -> torch.Tensor:
    """`quantiser` on every element."""
    values = [quantiser(value) for value in potential.flatten().tolist()]
    return torch.tensor(values, dtype=potential.dtype).reshape(potential.shape)


class Membrane:
    """A rate neuron as papers draw it: v += x; emit s = Q(v); v -= s."""

    def __init__(self, quantise: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.quantise = quantise
        self.v: torch.Tensor | float = 0.0

    def __call__(self, drive: torch.Tensor) -> torch.Tensor:
        charged = self.v + drive
        emitted = self.quantise(charged)
        self.v = charged - emitted
        return emitted


def drives(means: torch.Tensor) -> list[torch.Tensor]:
    """What arrives in each step when the running means after steps 1..T are `means`: t M(t) - (t-1) M(t-1)."""
    return [(t + 1) * means[t] - (t * means[t - 1] if t else 0.0) for t in range(len(means))]


# --- expectation compensation ----------------------------------------------------------------------------------------


class Compensated:
    """A nonlinear layer in a spiking network: y(t) = t F(X(t)/t) - (t-1) F(X(t-1)/(t-1)), X the sum of its input."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function
        self.sum: torch.Tensor | float = 0.0
        self.t = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        before = self.t * self.function(self.sum / self.t) if self.t else 0.0  # type: ignore[arg-type]
        self.t, self.sum = self.t + 1, self.sum + x
        return self.t * self.function(self.sum / self.t) - before


class CompensatedProduct:
    """A product of two spike streams, by the terms a chip computes: a b + a B + A b on sums A, B of earlier spikes.

    (A + a)(B + b) = A B + a b + a B + A b is kept as a running sum P; y(t) = P(t)/t - P(t-1)/(t-1).
    """

    def __init__(self, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.multiply = multiply
        self.t = 0

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.t == 0:
            self.a, self.b = torch.zeros_like(a), torch.zeros_like(b)
            self.product = torch.zeros_like(self.multiply(a, b))
        before = self.product / max(self.t, 1)
        self.product = self.product + self.multiply(a, b) + self.multiply(a, self.b) + self.multiply(self.a, b)
        self.t, self.a, self.b = self.t + 1, self.a + a, self.b + b
        return self.product / self.t - before


# --- operations ------------------------------------------------------------------------------------------------------


def linear_operations(spikes: np.ndarray, out_features: int) -> int:
    """Every spike reaches every output."""
    total = 0
    for _ in np.argwhere(spikes):
        total += out_features
    return total


def conv2d_operations(
    spikes: np.ndarray,
    out_channels: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> int:
    """For each spike [B, C, H, W], the outputs whose window holds it, in its group."""
    sizes = [
        (spikes.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)
    ]
    total = 0
    for _, _, row, column in np.argwhere(spikes):
        reached = 0
        for i in range(sizes[0]):
            for j in range(sizes[1]):
                inside_rows = [i * stride[0] + a * dilation[0] - padding[0] for a in range(kernel[0])]
                inside_columns = [j * stride[1] + b * dilation[1] - padding[1] for b in range(kernel[1])]
                reached += row in inside_rows and column in inside_columns
        total += reached * (out_channels // groups)
    return total


def pairs(left: np.ndarray, right: np.ndarray) -> int:
    """Multiplications of two non-zero elements in the matrix product left @ right, multiplied out."""
    return int(((left != 0).astype(np.int64) @ (right != 0).astype(np.int64)).sum())


def product_operations(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> list[int]:
    """Per step the three terms spike x spike + spike x sum + sum x spike of left @ right, sums up to that step."""
    counts = []
    left_sum, right_sum = np.zeros_like(left[0]), np.zeros_like(right[0])
    for a, b in zip(left, right, strict=True):
        left_sum, right_sum = left_sum + a, right_sum + b
        counts.append(pairs(a, b) + pairs(a, right_sum) + pairs(left_sum, b))
    return counts


# --- quantiles -------------------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(max(math.ceil(fraction * len(ordered)), 1), len(ordered)) - 1]


# --- a network and its literal spiking twin --------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """One head; q, k and v read the same tensor, as in many Hugging Face models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (torch.nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Mixing(torch.nn.Module):
    """Subtracts the mean of the batch: samples are not independent, so time cannot stand beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.a(x))
        return self.b(x - x.mean(0, keepdim=True))


class Block(torch.nn.Module):
    """One pre-norm Transformer block between a first layer and a head.

    x -> embed -> (+ attn norm1) -> (+ fc2 gelu fc1 norm2) -> norm -> mean over tokens -> head
    """

    def __init__(self, width: int = 8, hidden: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.embed, self.attn = torch.nn.Linear(6, width), Attention(width)
        self.norm1, self.norm2, self.norm = (torch.nn.LayerNorm(width) for _ in range(3))
        self.fc1, self.fc2 = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


BLOCK_SITES = (
    "attn.q:input",
    "attn:query",
    "attn:key",
    "attn:softmax",
    "attn:value",
    "attn.proj:input",
    "fc1:input",
    "fc2:input",
    "head:input",
)


@torch.no_grad()
def literal_block(net: Block, x: torch.Tensor, neurons: Mapping[str, Membrane], steps: int) -> torch.Tensor:
    """`net` as ECMT runs it: spikes in, spikes out, a compensation module for everything nonlinear.

    `neurons` by BLOCK_SITES. Returns the mean of all output so far after each step, [T, ...].
    """
    attn, root = net.attn, math.sqrt(net.attn.q.out_features)
    norm1, norm2, norm, gelu = map(Compensated, (net.norm1, net.norm2, net.norm, torch.nn.functional.gelu))
    softmax = Compensated(lambda scores: torch.softmax(scores / root, -1))
    scores, weighted = (CompensatedProduct(torch.matmul) for _ in range(2))
    total, outputs = torch.zeros(()), []
    for t in range(1, steps + 1):
        a = net.embed(x)  # the first layer stays analog: the same in every step
        y = neurons["attn.q:input"](norm1(a))
        q, k, v = neurons["attn:query"](attn.q(y)), neurons["attn:key"](attn.k(y)), neurons["attn:value"](attn.v(y))
        weights = neurons["attn:softmax"](softmax(scores(q, k.transpose(-2, -1))))
        a = a + attn.proj(neurons["attn.proj:input"](weighted(weights, v)))
        a = a + net.fc2(neurons["fc2:input"](gelu(net.fc1(neurons["fc1:input"](norm2(a))))))
        total = total + net.head(neurons["head:input"](norm(a).mean(1)))
        outputs.append(total / t)
    return torch.stack(outputs)
