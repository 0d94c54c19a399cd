"""Operators of the graph made of fitted functions: each takes what the ATen operator takes, and the fit's settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log2

import torch

from .bank import BITS, Fit, table
from .fitting import fit, fit_inner

LOG2_E = log2(2.718281828459045)
FAR = -150.0  # 2^FAR is 0 in float32


@cache
def _table(fitted: Fit, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return table(fitted).to(device, dtype)


@torch.no_grad()
def evaluate(fitted: Fit, x: torch.Tensor) -> torch.Tensor:
    """The fitted function, of each element; beyond its range that of the nearest end; NaN and infinity give NaN."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    values, wide = _table(fitted, dtype, x.device), x.to(dtype)
    if len(fitted.banks) == 2:
        index = _place(wide * torch.where(wide < 0, 1 / fitted.low, 1 / fitted.high))
        index += torch.where(wide < 0, 2**BITS, 0)
    else:
        index = _place((wide - fitted.low) / (fitted.high - fitted.low))
    return (values[index] + (wide - wide)).to(x.dtype)


def _place(membrane: torch.Tensor) -> torch.Tensor:
    return (membrane * 2**BITS).long().clamp_(0, 2**BITS - 1)


# --- element-wise ----------------------------------------------------------------------------------------------------


def gelu(
    x: torch.Tensor, *, approximate: str = "none", bases: int, window: int, low: float, high: float
) -> torch.Tensor:
    """GELU by a bank for each sign."""
    name = "gelu_tanh" if approximate == "tanh" else "gelu"
    return evaluate(fit(name, bases, window, low, high), x)


def silu(x: torch.Tensor, *, bases: int, window: int, low: float, high: float) -> torch.Tensor:
    """SiLU by a bank for each sign."""
    return evaluate(fit("silu", bases, window, low, high), x)


def tanh(x: torch.Tensor, *, bases: int, window: int, low: float, high: float) -> torch.Tensor:
    """tanh by a bank for each sign."""
    return evaluate(fit("tanh", bases, window, low, high), x)


def rsqrt(x: torch.Tensor, *, bases: int, window: int) -> torch.Tensor:
    """x = m 4^e with m in [1/2, 2); 1 / sqrt(x) is the fitted function of m, and a shift by -e. x <= 0 as it is."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    half = torch.div(torch.frexp(wide).exponent, 2, rounding_mode="floor")
    root = torch.ldexp(evaluate(fit_inner("rsqrt", bases, window), torch.ldexp(wide, -2 * half)), -half)
    return torch.where(wide > 0, root, wide.rsqrt()).to(x.dtype)


def reciprocal(x: torch.Tensor, *, bases: int, window: int) -> torch.Tensor:
    """x = m 2^e with m in [1/2, 1); 1 / x is the fitted function of m, and a shift by -e. For positive x."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(evaluate(fit_inner("reciprocal", bases, window), mantissa), -exponent)


# --- along an axis ---------------------------------------------------------------------------------------------------


def softmax(x: torch.Tensor, dim: int, *rest: object, bases: int, window: int, **options: object) -> torch.Tensor:
    """e^x = 2^i 2^f with i whole: a shift and the fitted function of f in [0, 1]; times the reciprocal of the sum.

    Scores are taken below their maximum, as usual. A row in which all is masked gives 0. `rest`: a result dtype, or
    whether half precision becomes single.
    """
    dtype = next((value for value in (*rest, *options.values()) if isinstance(value, torch.dtype)), x.dtype)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    masked = torch.isneginf(wide)
    power = torch.where(masked, FAR, (wide - wide.amax(dim, keepdim=True)) * LOG2_E).clamp_(min=FAR)
    whole = power.floor()
    terms = torch.ldexp(evaluate(fit_inner("exp2", bases, window), power - whole), whole.to(torch.int32))
    shares = terms * reciprocal(terms.sum(dim, keepdim=True), bases=bases, window=window)
    return torch.where(masked, 0.0, shares).to(dtype)


def layer_norm(
    x: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *rest: object,
    bases: int,
    window: int,
    **options: object,
) -> torch.Tensor:
    """Mean and variance exactly; 1 / sqrt(variance) by `rsqrt`. `rest`: whether a library's kernel may serve."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(-len(normalized_shape), 0))
    centred = wide - wide.mean(axes, keepdim=True)
    scaled = centred * rsqrt(centred.square().mean(axes, keepdim=True) + eps, bases=bases, window=window)
    scaled = scaled if weight is None else scaled * weight
    return (scaled if bias is None else scaled + bias).to(x.dtype)


def rms_norm(
    x: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    bases: int,
    window: int,
) -> torch.Tensor:
    """Mean square exactly; 1 / sqrt of it by `rsqrt`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = wide * rsqrt(wide.square().mean(axes, keepdim=True) + eps, bases=bases, window=window)
    return (scaled if weight is None else scaled * weight).to(x.dtype)


# By the name an operator has in a plan. Those of RANGED are fitted on a range of their own.
RANGED: dict[str, Callable[..., torch.Tensor]] = {"gelu.default": gelu, "silu.default": silu, "tanh.default": tanh}
SUBSTITUTES: dict[str, Callable[..., torch.Tensor]] = {
    **RANGED,
    "rsqrt.default": rsqrt,
    **dict.fromkeys(("softmax.int", "_softmax.default", "_safe_softmax.default"), softmax),
    "layer_norm.default": layer_norm,
    "rms_norm.default": rms_norm,
}
