"""The neuron as one pass over memory: the definition of each neuron, compiled over all T steps.

Eager PyTorch moves every intermediate of a step through memory; the compiled kernel reads the input once and writes the
output once, on CPU (C++ with vector instructions) and GPU (Triton) alike.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from ..errors import ConfigError
from ..types import Threshold
from .codes import STEPS
from .frame import Frame, Framed, plain
from .staircase import Staircase
from .trajectory import Neuron, rounded_to, spike_dtype, state_dtype

LOG = logging.getLogger("transpike")


KERNELS = ("auto", "compiled", "eager")
# Elements (neurons x samples x steps) from which compiling, some ten seconds per network, is sooner done than eager.
WORTH_COMPILING = 1 << 31
# Steps in one pass over memory: more read and write more streams than a processor keeps up with, so that the membrane
# goes through memory instead.
STEPS_AT_ONCE = 8


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
    return hasattr(plain(neuron), "level") and threshold.positive >= 0 and threshold.negative >= 0


@functools.lru_cache(maxsize=4096)
def one_number(neuron: Neuron, threshold: Threshold) -> bool:
    """Whether what a neuron emits in a step is one bfloat16 number: it fires once, with levels of at most 8 bits."""
    if neuron.pulses > 1 or (isinstance(neuron, Framed) and neuron.frame.octaves is None):
        return False
    sizes = torch.tensor(neuron.amplitudes(threshold), dtype=torch.float64)
    return torch.equal(sizes.bfloat16().double(), sizes)


class Form(NamedTuple):
    """What a kernel is compiled for: all that is not a number of one site. `parameters`: by the neuron's parameters,
    "0" and "none" for what is exactly that, "same" for what equals the one before, "number" for the others. `first` and
    `last`: it runs the steps between, counted from 0; `more`: others follow. `masks`: 1, who fired; 2, also whose sum
    is not zero. `emitted`: it gives spikes, not means. `stairs`: it looks up what several firings say."""

    kind: Any
    code: str
    pulses: int
    parameters: tuple[str, ...]
    first: int
    last: int
    more: bool
    masks: int
    framed: bool
    emitted: bool
    stairs: bool


def compiled_trajectory(
    neuron: Neuron,
    mean_in: torch.Tensor,
    threshold: Threshold,
    *,
    masks: bool,
    sums: bool = True,
    dtype: torch.dtype | None = None,
    emitted: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`neurons.trajectory`, compiled: the same arguments, results and rounding. Where the input is NaN or infinite the
    output is NaN, so that nobody has to look for those beforehand. With `emitted`, for neurons that emit `one_number`,
    what they emit in each step, in bfloat16, in place of running means."""
    frame = getattr(neuron, "frame", None) or Frame()
    placed = _placed(frame, mean_in)
    if placed is None:
        inner: Neuron = neuron.neuron  # type: ignore[attr-defined]
        how = {"masks": masks, "sums": sums, "emitted": emitted}
        out, fired, spoken = compiled_trajectory(inner, frame.enter(mean_in), threshold, **how)
        return rounded_to(out.dtype if emitted else dtype, frame.leave(out)), fired, spoken
    neuron, steps, shape = plain(neuron), mean_in.shape[0], mean_in.shape
    beside, sizes = placed
    framed, flat = len(sizes) > 1, mean_in.reshape(steps, *sizes)
    computed, device, many = _computed(beside, mean_in), flat.device, masks + (masks and sums)
    out = torch.empty(flat.shape, dtype=torch.bfloat16 if emitted else dtype or computed, device=device)
    marks = [torch.empty(flat.shape, dtype=torch.uint8, device=device) for _ in range(many)]
    state = [torch.empty(flat.shape[1:], dtype=computed, device=device)] if steps > STEPS_AT_ONCE else []
    stairs = _stairs(neuron, threshold, computed, device)
    numbers, passes = _passes(neuron, threshold, steps, many, framed, emitted, stairs is not None, computed, device)
    rows = [each.unbind() for each in (flat, out, *marks)]
    for run, first, last in passes:
        run(numbers, stairs, beside, state, *(list(each[first:last]) for each in rows))
    fired = marks[0].view(shape).view(spike_dtype(neuron)) if masks else None
    return out.view(shape), fired, marks[1].view(shape).view(torch.bool) if masks and sums else None


@functools.lru_cache(maxsize=4096)
def _passes(
    neuron: Any,
    threshold: Threshold,
    steps: int,
    masks: int,
    framed: bool,
    emitted: bool,
    stairs: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, tuple[tuple[Callable[..., None], int, int], ...]]:
    """The numbers of a site, and what runs over memory with the steps it is for; remembered, because
    finding it takes longer than running a small site."""
    parameters = neuron.parameters(threshold, dtype)
    kind = (type(neuron), neuron.code, neuron.pulses, _sorts(parameters))
    parts = [(first, min(first + STEPS_AT_ONCE, steps)) for first in range(0, steps, STEPS_AT_ONCE)]
    beside = (masks, framed, emitted, stairs)
    forms = [Form(*kind, first, last, last < steps, *beside) for first, last in parts]
    runs = tuple((_compiled(form), *part) for form, part in zip(forms, parts, strict=True))
    return _numbers(parameters, dtype, device), runs


def compiled_once(
    neuron: Neuron, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold, *, count: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`neurons.fire_once`, compiled: the same arguments and results, but `state` becomes what it is after the step, in
    the same memory. Where the input is NaN or infinite the output is NaN."""
    frame = getattr(neuron, "frame", None) or Frame()
    placed = _placed(frame, mean_in[None])
    if placed is None:
        inner: Neuron = neuron.neuron  # type: ignore[attr-defined]
        state, out, spikes = compiled_once(inner, state, t, frame.enter(mean_in), threshold, count=count)
        return state, frame.leave(out), spikes
    beside, sizes = placed
    neuron, framed, computed = plain(neuron), len(sizes) > 1, _computed(beside, mean_in)
    # What may be at rest after its first step has a kernel for that one: no state to clear and to read.
    alone = state is None and neuron.pulses > 1 and hasattr(neuron, "is_silent")
    if state is None:
        state = (torch.empty if alone else torch.zeros)(mean_in.shape, dtype=computed, device=mean_in.device)
    out = torch.empty(mean_in.shape, dtype=computed, device=mean_in.device)
    spikes = [torch.empty(mean_in.shape, dtype=torch.uint8, device=mean_in.device)] if count else []
    parameters = neuron.parameters(threshold, computed)  # type: ignore[attr-defined]
    stairs = _stairs(neuron, threshold, computed, mean_in.device)
    beyond = (int(count), framed, False, stairs is not None)
    form = Form(type(neuron), neuron.code, neuron.pulses, _sorts(parameters), 0, 1, True, *beyond)
    flat = [x.reshape(sizes) for x in (state, mean_in, out, *spikes)]
    if alone:
        _compiled(form)(_numbers(parameters, computed, out.device), stairs, beside, *([row] for row in flat))
    else:
        _compiled_once(form)(_numbers((*parameters, float(t)), computed, out.device), stairs, beside, *flat)
    return state, out, spikes[0].view(spike_dtype(neuron)) if count else None


def _stairs(neuron: Any, threshold: Threshold, dtype: torch.dtype, device: torch.device) -> Staircase | None:
    return neuron.stairs(threshold, dtype, device) if hasattr(neuron, "stairs") else None


def _computed(beside: Frame, mean_in: torch.Tensor) -> torch.dtype:
    parts = (part.dtype for part in beside.tensors().values())
    return functools.reduce(torch.promote_types, parts, state_dtype(mean_in.dtype))


def _placed(frame: Frame, mean_in: torch.Tensor) -> tuple[Frame, tuple[int, ...]] | None:
    """The frame of a trajectory [T, ...], as wide as the state, because compilers do not vectorise a mix of widths
    well; and the sizes in which they see a step: one without a frame; rows that share a frame [inner]; or [outer, rows,
    inner] and a frame [outer, 1, inner]. None where every axis has thresholds of its own, or where what the compiler
    makes of it rounds otherwise (on GPUs a quotient, or a product and a sum in one instruction)."""
    shape, parts = mean_in.shape[1:], frame.tensors()
    if not parts:
        return frame, (shape.numel(),)
    axis = next((axis for axis in range(-len(shape), 0) if _is_shared(axis, parts.values())), None)
    if axis is None or (mean_in.device.type != "cpu" and not frame.octaves):
        return None
    dtype, after = _computed(frame, mean_in), shape[len(shape) + axis + 1 :]
    one = (*shape[:axis], 1, *after)
    outer, inner = shape[:axis].numel(), after.numel()
    sizes = (shape[axis], inner) if outer == 1 else (outer, shape[axis], inner)
    row = (inner,) if outer == 1 else (outer, 1, inner)
    wide = {name: part.to(dtype).broadcast_to(one).reshape(row) for name, part in parts.items()}
    return Frame(**wide), sizes


def _is_shared(axis: int, parts: Iterable[torch.Tensor]) -> bool:
    return all(part.dim() < -axis or part.shape[axis] == 1 for part in parts)


@functools.lru_cache(maxsize=4096)
def _numbers(parameters: tuple[float | None, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a GPU a copy from the host for every site and run would cost more than a small site itself."""
    return torch.tensor([number or 0.0 for number in parameters], dtype=dtype, device=device)


def _sorts(parameters: tuple[float | None, ...]) -> tuple[str, ...]:
    """Of each parameter: both signs may have the same threshold and its inverse, second and fourth."""
    paired = [index in (1, 3) and number == parameters[index - 1] for index, number in enumerate(parameters)]
    return tuple(
        "none" if number is None else "0" if number == 0 else "same" if same else "number"
        for number, same in zip(parameters, paired, strict=True)
    )


def _as_compiled(sorts: tuple[str, ...], numbers: torch.Tensor) -> list[Any]:
    parameters: list[Any] = list(numbers.unbind())
    for index, sort in enumerate(sorts):
        if sort != "number":
            parameters[index] = {"none": None, "0": 0.0, "same": parameters[index - 1]}[sort]
    return parameters


def _options(form: Form) -> dict[str, Any]:
    """A cascade's six firings in one expression take the compiler minutes, and run no faster. So there it names values
    read more than once after 8 operations already, and still puts them all in one loop. (One firing a step runs slower
    that way.) Indices into a staircase are in range, so the compiled kernel does not look."""
    from torch._inductor import config

    many = form.pulses > 1 and not form.stairs
    wanted = {"realize_opcount_threshold": 8, "max_fusion_size": 1024} if many else {"assert_indirect_indexing": False}
    return {name: value for name, value in wanted.items() if hasattr(config, name)}


def spreads_nan(kind: Any, device: str) -> bool:
    """Whether a neuron gives NaN by itself for what is not finite. Bit patterns, from which levels are read on GPUs, do
    not: NaN would be silence there."""
    return device == "cpu" and getattr(kind, "spreads_nan", False)


def _firing(form: Form) -> Callable[..., tuple[Any, Any, Any]]:
    """A step of a neuron of this form, for the compiler: its state, what it gives, and how often it fired."""
    step, kind = STEPS[form.code], form.kind
    at_once = form.pulses > 1 and hasattr(kind, "firings") and bool({"0", "same"} & set(form.parameters[:2]))

    def fire(
        parameters: list[Any], stairs: Staircase | None, frame: Frame, state: Any, time: Any, mean_in: torch.Tensor
    ) -> tuple[Any, Any, Any]:
        count: Any = 0.0
        mean_in = frame.enter(mean_in) if form.framed else mean_in
        if at_once:
            drive = mean_in.to(state_dtype(mean_in.dtype))
            how = {"count": form.masks > 0, "stairs": stairs}
            state, mean_out, count = kind.firings(state, drive, form.pulses, *parameters, **how)
        else:
            for _ in range(form.pulses):
                state, mean_out, emitted = step(lambda m: kind.level(m, *parameters), state, time, mean_in)
                count = count + torch.where(emitted != 0, 1.0, 0.0)
        given = emitted if form.emitted else mean_out
        if not spreads_nan(kind, mean_in.device.type):
            given = given + mean_in * 0.0  # nothing, but NaN for what is not finite
        return state, frame.leave(given) if form.framed else given, count

    return fire


@functools.cache
def _compiled(form: Form) -> Callable[..., None]:
    """Numbers that differ from site to site are arguments, so that one kernel serves all sites of a network."""
    LOG.info("compiling the %s kernel for steps %d to %d", form.kind.name, form.first + 1, form.last)
    fire = _firing(form)

    def run(numbers: torch.Tensor, stairs: Any, frame: Frame, kept: list, means: list, out: list, *marks: list) -> None:
        parameters = _as_compiled(form.parameters, numbers)
        state = kept[0] if form.first else None
        for t, time in enumerate(range(form.first + 1, form.last + 1)):
            state, given, count = fire(parameters, stairs, frame, state, time, means[t])
            out[t].copy_(given)
            if form.masks:
                marks[0][t].copy_(count.to(torch.uint8))
            if form.masks > 1:
                marks[1][t].copy_(torch.where(state != 0, 1.0, 0.0).to(torch.uint8))
        if form.more:
            kept[0].copy_(state)

    return _compile(run, form)


@functools.cache
def _compiled_once(form: Form) -> Callable[..., None]:
    """One step, whichever it is: its number is an argument too."""
    LOG.info("compiling the %s kernel for one step", form.kind.name)
    fire = _firing(form)

    def run(
        numbers: torch.Tensor, stairs: Any, frame: Frame, state: torch.Tensor, mean_in: Any, out: Any, *marks: Any
    ) -> None:
        parameters = _as_compiled(form.parameters, numbers[:-1])
        after, given, count = fire(parameters, stairs, frame, state, numbers[-1], mean_in)
        out.copy_(given)
        if form.masks:
            marks[0].copy_(count.to(torch.uint8))
        state.copy_(after)

    return _compile(run, form)


def _compile(run: Callable[..., None], form: Form) -> Callable[..., None]:
    # The compiler keeps and looks up what it made by code object: one for each form, or all forms share one list.
    code = run.__code__.replace(co_name=f"{run.__name__}_{form.kind.__name__}")
    own = types.FunctionType(code, run.__globals__, code.co_name, run.__defaults__, run.__closure__)
    compiled = torch.compile(own, dynamic=True, fullgraph=True, options=_options(form))

    def call(*arguments: Any) -> None:
        try:
            compiled(*arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # nothing has run; devices, widths and layouts are many
            with torch._dynamo.config.patch(recompile_limit=64):
                compiled(*arguments)

    return call
