"""A linear layer fed with spikes, on a processor's bfloat16 matrix units and as exact as in float32.

A weight of float32 is the sum of three bfloat16 numbers; what a neuron that fires once emits in a step, theta 2^-k with
theta of 8 significant bits, is one. So with W = W_1 + W_2 + W_3

    M_out(t) = 1/t sum_{s <= t} (W_1 S(s) + W_2 S(s) + W_3 S(s)) + b        (sum codes: without 1/t)

is the layer of the running means: every product of the three is exact in float32, in which they are added up, and the
sum over time costs nothing, because a block of sums stays in the cache while the steps are added to it. The error is
that of a float32 product, or smaller (tests/test_spike_products.py holds both against float64).

Splitting weights for bfloat16 units: Henry, Tang and Heinecke, arXiv 1904.06376. There both factors are split, which
takes six products for the precision of float32; spikes take three. The matrix units are reached by PyTorch's own
blocked product (`at::native::cpublas::brgemm`), from C++ that PyTorch's compiler builds and caches.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PARTS, COLUMNS = 3, 64  # as in spikes.cpp
FLAGS = ("-O3", "-march=native", "-ftree-loop-vectorize", "-mprefer-vector-width=512")


def linear_of_spikes(spikes: Tensor, weight: Tensor, bias: Tensor | None = None, *, steps: int, rate: bool) -> Tensor:
    """Running means (`rate`) or sums of what a linear layer makes of spikes.

    Arguments: spikes -- [T * B, ..., K], what was emitted in each step, in bfloat16, time outermost. weight -- [N, K].
    Returns: [T * B, ..., N], the layer's output on the mean of steps 1..t (or on their sum), bias included.
    """
    means = _means_on_matrix_units if _fits(spikes, weight, bias) else means_as_defined
    return means(spikes, weight, bias, steps, rate)


def means_as_defined(spikes: Tensor, weight: Tensor, bias: Tensor | None, steps: int, rate: bool) -> Tensor:
    """The same in plain PyTorch."""
    sums = spikes.view(steps, -1, spikes.shape[-1]).to(weight.dtype).cumsum(0)
    if rate:
        sums /= torch.arange(1, steps + 1, dtype=sums.dtype, device=sums.device).view(-1, 1, 1)
    return torch.nn.functional.linear(sums.view(spikes.shape), weight, bias)


def refusal(device: torch.device) -> str:
    """Why linear layers are not computed from spikes on a device, or ""."""
    if device.type != "cpu" or not torch.cpu.get_capabilities().get("amx_bf16"):
        return "no matrix units for bfloat16 in the processor"
    return _refusal()


@functools.cache
def _refusal() -> str:
    spikes, weight = torch.eye(66, dtype=torch.bfloat16).repeat(2, 1), torch.arange(70.0 * 66).view(70, 66)
    try:
        found = _means_on_matrix_units(spikes, weight, None, 2, True)
    except Exception as error:  # noqa: BLE001 -- compilers fail in their own ways
        return f"the product could not be built ({type(error).__name__})"
    return "" if torch.equal(found, weight.T.repeat(2, 1)) else "the product gives wrong results here"


def _fits(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [spikes, weight] if bias is None else [spikes, weight, bias]
    plain = all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
    dtypes = {tensor.dtype for tensor in tensors[1:]}
    return plain and dtypes == {torch.float32} and weight.shape[1] % 2 == 0 and not refusal(spikes.device)


def _means_on_matrix_units(spikes: Tensor, weight: Tensor, bias: Tensor | None, steps: int, rate: bool) -> Tensor:
    columns, inner = weight.shape
    out = torch.empty(*spikes.shape[:-1], columns)
    packed = torch.empty(PARTS * inner * -(-columns // COLUMNS) * COLUMNS, dtype=torch.bfloat16)
    rows = out.numel() // max(columns * steps, 1)
    block = PARTS * 2 * inner * COLUMNS  # bytes
    at_once = max(1, torch.cpu.get_capabilities()["l2_cache_size"] // 2 // block)
    pointers = (spikes, weight, bias, packed, out)
    _built()(*(None if x is None else x.data_ptr() for x in pointers), steps, rows, inner, columns, rate, at_once)
    return out


@functools.cache
def _built() -> Callable[..., None]:
    from torch._inductor.codecache import CppCodeCache

    library: Any = CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(), extra_flags=FLAGS)
    function = library.linear_of_spikes
    function.argtypes, function.restype = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 6, None
    return function
