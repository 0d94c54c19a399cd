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
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LOG = logging.getLogger("transpike")
PARTS, COLUMNS = 3, 64  # as in spikes.cpp
FLAGS = ("-O3", "-march=native", "-ftree-loop-vectorize", "-mprefer-vector-width=512")


def linear_of_spikes(
    spikes: Tensor, weight: Tensor, bias: Tensor | None = None, *, steps: int, rate: bool, outer: int = 1
) -> Tensor:
    """Running means (`rate`) or sums of what a linear layer makes of spikes.

    Arguments: spikes -- [outer, T, rows, K] in any grouping of the first three, what was emitted in each step, in
    bfloat16. weight -- [N, K].
    Returns: the same with N for K, the layer's output on the mean of steps 1..t (or on their sum), bias included.
    """
    means = _means_on_matrix_units if _fits(spikes, weight, bias) else means_as_defined
    said = spikes.reshape(outer, steps, -1, spikes.shape[-1])
    return means(said, weight, bias, rate).view(*spikes.shape[:-1], weight.shape[0])


def means_as_defined(spikes: Tensor, weight: Tensor, bias: Tensor | None, rate: bool) -> Tensor:
    """The same of [outer, T, rows, K] in plain PyTorch."""
    sums, steps = spikes.to(weight.dtype).cumsum(1), spikes.shape[1]
    if rate:
        sums /= torch.arange(1, steps + 1, dtype=sums.dtype, device=sums.device).view(-1, 1, 1)
    return torch.nn.functional.linear(sums, weight, bias)


def refusal(device: torch.device) -> str:
    """Why linear layers are not computed from spikes on a device, or ""."""
    if device.type != "cpu" or not torch.cpu.get_capabilities().get("amx_bf16"):
        return "no matrix units for bfloat16 in the processor"
    return _refusal()


@functools.cache
def _refusal() -> str:
    spikes, weight = torch.eye(66, dtype=torch.bfloat16).repeat(3, 2, 1, 1), torch.arange(70.0 * 66).view(70, 66)
    reason = ""
    try:
        if not torch.equal(_means_on_matrix_units(spikes, weight, None, True), weight.T.repeat(3, 2, 1, 1)):
            reason = "the product of spikes gives wrong results here"
    except Exception as error:  # noqa: BLE001 -- compilers fail in their own ways
        reason = f"the product of spikes could not be built ({type(error).__name__})"
    if reason:
        LOG.warning("%s; linear layers are computed from running means", reason)
    return reason


def _fits(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    constants = [weight] if bias is None else [weight, bias]
    plain = all(constant.is_contiguous() and constant.dtype == torch.float32 for constant in constants)
    return plain and weight.shape[1] % 2 == 0 and not refusal(spikes.device)


def _means_on_matrix_units(spikes: Tensor, weight: Tensor, bias: Tensor | None, rate: bool) -> Tensor:
    (outer, steps, rows, inner), columns = spikes.shape, weight.shape[0]
    spikes = spikes.transpose(0, 1).contiguous()
    out = torch.empty(outer, steps, rows, columns)
    packed = torch.empty(PARTS * inner * -(-columns // COLUMNS) * COLUMNS, dtype=torch.bfloat16)
    block = PARTS * 2 * inner * COLUMNS  # bytes
    at_once = max(1, torch.cpu.get_capabilities()["l2_cache_size"] // 2 // block)
    pointers = (None if x is None else x.data_ptr() for x in (spikes, weight, bias, packed, out))
    _built()(*pointers, steps, outer, rows, inner, columns, rate, at_once)
    return out


@functools.cache
def _built() -> Callable[..., None]:
    from torch._inductor.codecache import CppCodeCache

    library: Any = CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(), extra_flags=FLAGS)
    function = library.linear_of_spikes
    function.argtypes, function.restype = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 7, None
    return function
