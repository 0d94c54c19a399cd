"""What a neuron is, and how one runs over all T steps at once."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch

from ..errors import ConfigError
from ..types import Threshold

# Elements of one step handled together: state and temporaries stay in cache (measured: 2**18 float32 is the fastest
# power of two on a two-core server CPU, 2.3 times a plain copy of the tensor at T = 4).
CHUNK = 1 << 18


@runtime_checkable
class Neuron(Protocol):
    """A frozen dataclass with the fields that define the neuron, and pure functions.

    code -- "rate": a signal's value is the mean of what was emitted; "sum": the sum. pulses -- how often the neuron may
    fire within one step: `step` is repeated that often, on the same input. quantise -- Q, which turns a membrane into
    what is emitted. amplitudes -- every value Q can emit but 0, one per binary channel. A neuron may also have
    at_once(state, t, mean_in, threshold, count=...) -> (state, mean_out, how many spikes): all firings of a step; and
    is_silent(potential, threshold) -> bool: whether none of these would fire.
    """

    name: ClassVar[str]
    code: ClassVar[str]

    @property
    def levels(self) -> int: ...

    @property
    def pulses(self) -> int: ...

    def step(
        self, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...

    def quantise(self, potential: torch.Tensor, threshold: Threshold) -> torch.Tensor: ...

    def amplitudes(self, threshold: Threshold) -> tuple[float, ...]: ...


def spike_dtype(neuron: Neuron) -> torch.dtype:
    """Of counts of spikes in a step."""
    return torch.bool if neuron.pulses == 1 else torch.uint8


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Neuron state is float32 at least, whatever autocast makes of the input."""
    return torch.promote_types(dtype, torch.float32)


def require_wide(dtype: torch.dtype, what: str) -> None:
    """Raises ConfigError for numbers of less than 32 bits, which neurons do not keep to."""
    if dtype.is_floating_point and dtype.itemsize < 4:
        raise ConfigError(
            f"{what}; neurons compute in float32: convert model.float(), and simulate with precision='bfloat16'"
        )


def rounded_to(dtype: torch.dtype | None, value: torch.Tensor) -> torch.Tensor:
    return value if dtype is None else value.to(dtype)


def advance(
    neuron: Neuron, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """One time-step of `neuron.pulses` firings: the state and mean after it, and what each firing emitted."""
    trains = []
    for _ in range(neuron.pulses):
        state, mean_out, emitted = neuron.step(state, t, mean_in, threshold)
        trains.append(emitted)
    return state, mean_out, trains  # type: ignore[return-value]


def fire_once(
    neuron: Neuron, state: torch.Tensor | None, t: int, mean_in: torch.Tensor, threshold: Threshold, *, count: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One time-step: the state and mean after it and, with `count`, how often each neuron fired. A neuron that has its
    firings `at_once` is not asked for them one by one."""
    frame = getattr(neuron, "frame", None)
    if frame is not None:
        inner: Neuron = neuron.neuron  # type: ignore[attr-defined]
        state, mean_out, spikes = fire_once(inner, state, t, frame.enter(mean_in), threshold, count=count)
        return state, frame.leave(mean_out), spikes
    if hasattr(neuron, "at_once"):
        return neuron.at_once(state, t, mean_in, threshold, count=count)
    state, mean_out, trains = advance(neuron, state, t, mean_in, threshold)
    return state, mean_out, spikes_in(trains) if count else None


def spikes_in(trains: list[torch.Tensor]) -> torch.Tensor:
    """How often each neuron fired: bool for one firing, uint8 for more."""
    if len(trains) == 1:
        return trains[0] != 0
    return torch.stack([emitted != 0 for emitted in trains]).sum(0, dtype=torch.uint8)


def spikes_and(before: torch.Tensor | None, emitted: torch.Tensor) -> torch.Tensor:
    """How often each neuron has fired, after one more firing; compiled, in floats, which vectorise."""
    fired = torch.where(emitted != 0, 1.0, 0.0) if torch.compiler.is_compiling() else emitted != 0
    return (
        fired if before is None else before.to(torch.uint8).add_(fired) if fired.dtype == torch.bool else before + fired
    )


def trajectory(
    neuron: Neuron,
    mean_in: torch.Tensor,
    threshold: Threshold,
    *,
    masks: bool = False,
    sums: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Run `neuron` over a whole trajectory, chunk by chunk.

    Arguments: mean_in -- running means of the input after each step, [T, ...]. masks -- also say who fired and, with
    `sums`, whose sum is not zero. dtype -- of the means that are returned, for readers that round them anyway; by
    default that of the state.
    Returns: running means of the output [T, ...]; and, where asked for, two tensors [T, ...]: how many spikes a neuron
    emitted in a step (bool where it emits at most one, else uint8), and whose emitted sum is non-zero after it (bool:
    what a compensated product multiplies with).
    Invariant: equals calling `advance` T times on whole tensors, bit for bit (but for rounding, in closed form).
    """
    frame = getattr(neuron, "frame", None)
    if frame is not None:
        inner: Neuron = neuron.neuron  # type: ignore[attr-defined]
        out, fired, spoken = trajectory(inner, frame.enter(mean_in), threshold, masks=masks, sums=sums)
        return rounded_to(dtype, frame.leave(out)), fired, spoken
    steps, shape = mean_in.shape[0], mean_in.shape
    flat = mean_in.reshape(steps, -1)
    out = torch.empty(flat.shape, dtype=dtype or state_dtype(mean_in.dtype), device=mean_in.device)
    fired = torch.empty(flat.shape, dtype=spike_dtype(neuron), device=mean_in.device) if masks else None
    spoken = torch.empty(flat.shape, dtype=torch.bool, device=mean_in.device) if masks and sums else None
    size = CHUNK if mean_in.device.type == "cpu" else max(flat.shape[1], 1)
    for start in range(0, flat.shape[1], size):
        part = slice(start, start + size)
        state = None
        for t in range(steps):
            state, out[t, part], spikes = fire_once(neuron, state, t + 1, flat[t, part], threshold, count=masks)
            if fired is not None:
                fired[t, part] = spikes
            if spoken is not None:
                torch.ne(state, 0, out=spoken[t, part])
    return (
        out.view(shape),
        fired if fired is None else fired.view(shape),
        spoken if spoken is None else spoken.view(shape),
    )
