"""A linear layer on a processor's bfloat16 matrix units, as exact as in float32.

A float32 number is the sum of three bfloat16 numbers, the second at most 2^-9 of the first and the third of the second.
A product of two is nine products of parts, exact in float32, in which they are added up. Three of the nine are below
2^-24 of the whole and left out. What a neuron that fires once emits in a step, theta 2^-k with theta of 8 significant
bits, is one part; so a layer that reads spikes takes three products, W = W_1 + W_2 + W_3,

    M_out(t) = 1/t sum_{s <= t} (W_1 S(s) + W_2 S(s) + W_3 S(s)) + b        (sum codes: without 1/t)

and the sum over time costs nothing, because a block of sums stays in the units while steps are added to it. One that
reads running means takes six. The error is that of a float32 product, or smaller (tests/test_linear.py holds both
against float64), and does not depend on how many rows or threads there are, to the last bit.

Parts of bfloat16 for float32 products: Henry, Tang and Heinecke, arXiv 1904.06376 (BF16x6). The C++ is compiled and
cached by PyTorch's compiler.
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
PARTS, BLOCK = 3, 32  # as in parts.cpp
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512")


def linear_of_spikes(
    spikes: Tensor, weight: Tensor, bias: Tensor | None = None, *, steps: int, rate: bool, outer: int = 1
) -> Tensor:
    """Running means (`rate`) or sums of what a linear layer makes of spikes.

    Arguments: spikes -- [outer, T, rows, K] in any grouping of the first three, what was emitted in each step, in
    bfloat16. weight -- [N, K].
    Returns: the same with N for K, the layer's output on the mean of steps 1..t (or on their sum), bias included.
    """
    means = _in_parts if _fits(spikes, torch.bfloat16, weight, bias) else means_as_defined
    said = spikes.reshape(outer, steps, -1, spikes.shape[-1])
    return means(said, weight, bias, rate).view(*spikes.shape[:-1], weight.shape[0])


def linear_of_means(means: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of float32 tensors [..., K], [N, K] and [N]."""
    if not _fits(means, torch.float32, weight, bias):
        return torch.nn.functional.linear(means, weight, bias)
    return _in_parts(means.reshape(1, 1, -1, means.shape[-1]), weight, bias, False).view(*means.shape[:-1], -1)


def means_as_defined(spikes: Tensor, weight: Tensor, bias: Tensor | None, rate: bool) -> Tensor:
    """What `linear_of_spikes` gives of [outer, T, rows, K], in plain PyTorch."""
    sums, steps = spikes.to(weight.dtype).cumsum(1), spikes.shape[1]
    if rate:
        sums /= torch.arange(1, steps + 1, dtype=sums.dtype, device=sums.device).view(-1, 1, 1)
    return torch.nn.functional.linear(sums, weight, bias)


def refusal(device: torch.device) -> str:
    """Why linear layers are not computed this way on a device, or ""."""
    if device.type != "cpu" or not torch.cpu.get_capabilities().get("amx_bf16"):
        return "no matrix units for bfloat16 in the processor"
    return _refusal()


@functools.cache
def _refusal() -> str:
    spikes = torch.eye(66, dtype=torch.bfloat16, device="cpu").repeat(3, 2, 1, 1)
    weight = torch.arange(70 * 66, dtype=torch.float32, device="cpu").view(70, 66)
    reason = ""
    try:
        for said in (spikes, spikes.float()):
            if not torch.equal(_in_parts(said, weight, None, True), means_as_defined(said, weight, None, True)):
                reason = "the product in parts gives wrong results here"
    except Exception as error:  # noqa: BLE001 -- compilers fail in their own ways
        reason = f"the product in parts could not be built ({type(error).__name__})"
    if reason:
        LOG.warning("%s; linear layers are PyTorch's own, of running means", reason)
    return reason


def _fits(inputs: Tensor, dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> bool:
    constants = [weight] if bias is None else [weight, bias]
    plain = all(constant.is_contiguous() and constant.dtype == torch.float32 for constant in constants)
    plain = plain and weight.shape[1:] == inputs.shape[-1:] and all(c.shape[0] == weight.shape[0] for c in constants)
    return plain and inputs.dtype == dtype and inputs.numel() > 0 and not refusal(inputs.device)


def _in_parts(inputs: Tensor, weight: Tensor, bias: Tensor | None, rate: bool) -> Tensor:
    """Of [outer, T, rows, K]. Float32 inputs are numbers by themselves, their steps added up like those of spikes."""
    (outer, steps, rows, inner), columns = inputs.shape, weight.shape[0]
    inputs, out = inputs.contiguous(), weight.new_empty(outer, steps, rows, columns)
    blocks = -(-inner // BLOCK) * -(-columns // BLOCK)
    packed = weight.new_empty(PARTS * blocks * BLOCK * BLOCK, dtype=torch.bfloat16)
    pointers = (None if x is None else x.data_ptr() for x in (inputs, weight, bias, packed, out))
    _built()(*pointers, steps, outer, rows, inner, columns, rate, inputs.dtype == torch.float32)
    return out


@functools.cache
def _built() -> Callable[..., None]:
    from torch._inductor.codecache import CppCodeCache

    library: Any = CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(), extra_flags=FLAGS)
    function = library.linear_in_parts
    function.argtypes, function.restype = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 7, None
    return function
