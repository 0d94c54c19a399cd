"""The neuron as one pass over memory: the definition of each neuron, compiled over all T steps.

Eager PyTorch moves every intermediate of a step through memory; the compiled kernel reads the input once and writes the
output once, on CPU (C++ with vector instructions) and GPU (Triton) alike.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import STEPS
from .trajectory import Neuron, spike_dtype, state_dtype

LOG = logging.getLogger("transpike")


KERNELS = ("auto", "compiled", "eager")
# Elements (neurons x samples x steps) from which compiling, some ten seconds per network, is sooner done than eager.
WORTH_COMPILING = 1 << 31


def choose(kernel: str, elements: int, device: torch.device) -> str:
    """ "compiled", or "eager" with the reason. Raises ConfigError where "compiled" is asked for and not to be had."""
    if kernel not in KERNELS:
        raise ConfigError(f"kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
    if kernel == "eager":
        return "eager (as asked)"
    if kernel == "auto" and elements < WORTH_COMPILING:
        return "eager (too little work to compile)"
    reason = refusal(device)
    if reason and kernel == "compiled":
        raise ConfigError(f"{reason}; use kernel='eager'")
    return f"eager ({reason})" if reason else "compiled"


def refusal(device: torch.device) -> str:
    """Why kernels cannot be compiled for a device, or ""."""
    return _refusal(device.type)


@functools.cache
def _refusal(device: str) -> str:
    try:
        tried = torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # noqa: BLE001 -- compilers fail in their own ways
        return f"torch.compile does not work here ({type(error).__name__})"
    return "" if bool((tried == 3).all()) else "torch.compile gives wrong results here"


def fits(neuron: Neuron, threshold: Threshold) -> bool:
    """Whether the kernel covers this neuron at this threshold (negative ones, as published, need a scan of levels)."""
    return hasattr(neuron, "level") and threshold.positive >= 0 and threshold.negative >= 0


def compiled_trajectory(
    neuron: Neuron, mean_in: torch.Tensor, threshold: Threshold, *, masks: bool, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`neurons.trajectory`, compiled: the same arguments, results and rounding. Where the input is NaN or infinite the
    output is NaN, so that nobody has to look for those beforehand."""
    frame = getattr(neuron, "frame", None)
    if frame is not None:
        out, fired, spoken = compiled_trajectory(
            neuron.neuron, frame.enter(mean_in), threshold, masks=masks, dtype=dtype
        )  # type: ignore[attr-defined]
        return frame.leave(out), fired, spoken
    steps, shape = mean_in.shape[0], mean_in.shape
    flat = mean_in.reshape(steps, -1)
    computed = state_dtype(mean_in.dtype)
    parameters = neuron.parameters(threshold)  # type: ignore[attr-defined]
    run = _compiled(type(neuron), neuron.code, neuron.pulses, steps, parameters[0] == parameters[1], masks)
    out = torch.empty(flat.shape, dtype=dtype or computed, device=flat.device)
    marks = [torch.empty(flat.shape, dtype=torch.uint8, device=flat.device) for _ in range(2 * masks)]
    numbers = torch.tensor(parameters, dtype=computed, device=flat.device)
    run(list(flat), numbers, list(out), *(list(mark) for mark in marks))
    if not masks:
        return out.view(shape), None, None
    fired, spoken = (mark.view(shape) for mark in marks)
    return out.view(shape), fired.view(spike_dtype(neuron)), spoken.view(torch.bool)


@functools.cache
def _compiled(kind: Any, code: str, pulses: int, steps: int, symmetric: bool, masks: bool) -> Callable[..., None]:
    """Numbers that differ from site to site are arguments, so that one kernel serves all sites of a network."""
    LOG.info("compiling the %s kernel for T = %d", kind.name, steps)
    step = STEPS[code]

    def run(means: list, numbers: torch.Tensor, out: list, *marks: list) -> None:
        parameters = list(numbers.unbind())
        if symmetric:
            parameters[1] = parameters[0]
        state = None
        for t in range(steps):
            count: Any = 0.0
            for _ in range(pulses):
                state, mean_out, emitted = step(lambda m: kind.level(m, *parameters), state, t + 1, means[t])
                count = count + torch.where(emitted != 0, 1.0, 0.0)
            out[t].copy_(mean_out + means[t] * 0.0)  # nothing, but NaN for what is not finite
            if masks:
                marks[0][t].copy_(count.to(torch.uint8))
                marks[1][t].copy_(torch.where(state != 0, 1.0, 0.0).to(torch.uint8))

    compiled = torch.compile(run, dynamic=True, fullgraph=True)

    def call(*arguments: Any) -> None:
        with torch._dynamo.config.patch(recompile_limit=64):
            compiled(*arguments)

    return call
