"""A matrix product of float32 tensors as three of bfloat16 ones, added up in float32.

With x = h + l, h = bfloat16(x), l = bfloat16(x - h):   x w  ~  h_x h_w + l_x h_w + h_x l_w

to about 2^-16 of |x| |w|: a hundredth of what rounding x, w and their product to bfloat16 changes. (Membranes that lie
on a boundary decide otherwise all the same, as after any change: docs/speed.md.) The three are one product over an
inner dimension three times as long, which a GPU does on its bfloat16 matrix units and gives in float32. Known
elsewhere as BF16x3 (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-
Precision Computations", arXiv 1904.06376).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .plain import as_it_is

aten = torch.ops.aten
ALIGNED = 8  # matrix units read 16 bytes at a time
_active: ContextVar[bool] = ContextVar("three_products", default=False)


@contextlib.contextmanager
def three_products() -> Iterator[None]:
    """Within it, what `applied` gives computes products this way."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def applied() -> Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]:
    """How an operator of a graph is called now: f(target, args, kwargs)."""
    return _in_three if _active.get() else as_it_is


def in_thirds(x: Tensor, order: str) -> Tensor:
    """High ("h") and low ("l") parts of x [..., K], one after the other in this order along the last axis; zeros up to
    an aligned length."""
    inner = x.shape[-1]
    parts = x.new_empty(*x.shape[:-1], -(-3 * inner // ALIGNED) * ALIGNED, dtype=torch.bfloat16)
    high = parts[..., :inner].copy_(x)
    for position, part in enumerate(order[1:], 1):
        target = parts[..., position * inner : (position + 1) * inner]
        target.copy_(high) if part == "h" else torch.sub(x, high, out=target)
    parts[..., 3 * inner :].zero_()
    return parts


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [..., M, K] times b [..., N, K] transposed, in float32."""
    left, right = in_thirds(a, "hlh"), in_thirds(b, "hhl").mT
    if not left.is_cuda:  # other devices have no product of bfloat16 tensors that gives float32
        return left.float() @ right.float()
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    return multiply(left, right, out_dtype=torch.float32)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """torch.matmul of tensors of at least two dimensions, whose outer ones are broadcast."""
    if a.dim() < 2 or b.dim() < 2:
        return torch.matmul(a, b)
    if b.dim() == 2:
        return product(a.reshape(-1, a.shape[-1]), b.mT).view(*a.shape[:-1], b.shape[-1])
    outer = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (x.expand(*outer, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (a, b.mT))
    return product(a, b).view(*outer, a.shape[-2], b.shape[-2])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = product(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out.add_(bias)


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return matmul(a, b).mul_(alpha) + beta * bias


PRODUCTS: Mapping[Any, Callable[..., Tensor]] = {
    aten.linear.default: linear,
    aten.matmul.default: matmul,
    aten.mm.default: matmul,
    aten.bmm.default: matmul,
    aten.addmm.default: addmm,
    aten.baddbmm.default: addmm,
}


def _in_three(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    own = PRODUCTS.get(target, target)
    if any(isinstance(value, Tensor) and value.dtype != torch.float32 for value in args):
        own = target
    return own(*args, **kwargs)
