"""SpikingModel, batch -> Run: T steps, folded into the batch or one after the other.

Every compensated operator is the source operator on running means, so the simulator runs the source graph and only the
neurons have state (DESIGN 2.1).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from ._arguments import require_count
from ._count import Counter, fold_back
from ._execute import Values, batch_axis, require_finite, run_body, run_prefix
from ._kernels import EAGER, Kernels, choose_kernels
from ._memory import parts_that_fit
from ._rest import Rest, can_rest, rests_soon
from .errors import ConfigError
from .measure import Tally, per_step
from .neurons import fire_once, trajectory
from .products import three_products

if TYPE_CHECKING:
    from ._model import SpikingModel

MODES = ("auto", "folded", "streaming")
PRECISIONS = ("float32", "bfloat16", "bfloat16x3")


@dataclass(frozen=True)
class Run:
    """What T steps gave: `outputs` [T, ...], the network's output after each step; `spikes`, all counts; how time ran
    (`mode`) and the neurons (`kernel`, with the reason where they are not compiled)."""

    outputs: torch.Tensor
    spikes: Tally
    mode: str
    kernel: str = "eager"

    @property
    def steps(self) -> int:
        return self.outputs.shape[0]

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.outputs.shape))
        spikes = self.spikes.spikes_per_neuron().sum()
        return f"Run: outputs {shape}, {self.steps} steps {self.mode}, {spikes:.2f} spikes per neuron"


@torch.no_grad()
def simulate(
    model: SpikingModel,
    inputs: Any,
    *,
    steps: int,
    mode: str = "auto",
    count: bool = True,
    kernel: str | None = None,
    max_memory: int | None = None,
    precision: str | None = None,
) -> Run:
    """Simulate `steps` time-steps on one batch.

    Arguments: inputs -- as the source model takes them: a tensor, a tuple or a dict. mode -- "folded" runs all steps
    as one batch of T x B; "streaming" runs them one after the other with one tensor of state per neuron, memory
    independent of T but for the outputs, until nobody would fire again: the steps after that are what this one is, to
    the last bit, and do not run. "auto" folds where conversion found that the model allows it, but for four steps or
    more of neurons that fire several times in each, at rest before, and for two or three of those that mostly say all
    in the first. count -- also count spikes and synaptic
    operations. kernel -- "compiled" runs neurons as one compiled pass over memory, "eager" step by step in PyTorch,
    bit for bit the same; "auto" compiles where that is worth it and a compiler is there; None is the model's own
    choice, `model.kernel`. Compiled, a processor with matrix units for bfloat16 computes linear layers on them, folded
    from spikes where it can; as exactly as in float32, but with other rounding (`products.linear_of_spikes`).
    max_memory -- bytes that the run may take beside weights and inputs: a batch that needs more is simulated in parts;
    None is `model.max_memory` or, where that is None, half of what is available.
    precision -- "bfloat16" runs all operators under autocast, with the state of neurons in float32 as ever;
    "bfloat16x3" every matrix product as three bfloat16 ones added up in float32, for GPUs, where that is faster than
    float32 and nearly as exact (convolutions and einsum stay as they are); "float32" leaves the model as it is; None is
    `model.precision`.
    Raises: ConfigError for steps < 1, a kernel that is not to be had, or a mode the model does not allow; DataError for
    inputs of another shape.
    """
    require_count("steps", steps)
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "folded" and model.unfoldable:
        raise ConfigError(f"this model cannot run folded ({model.unfoldable}); use mode='streaming'")
    require_precision(precision := precision or model.precision)
    leaves = model.prepare(inputs)
    samples = model.samples_in(leaves)
    folded = mode == "folded" or (mode == "auto" and not model.unfoldable and not rests_soon(model, steps))
    chosen = choose_kernels(model, kernel, precision, samples=samples, steps=steps, folded=folded)
    budget = model.max_memory if max_memory is None else max_memory
    run, runs = (_folded if folded else _streaming), []
    for part in parts_that_fit(
        model, leaves, steps=steps, folded=folded, count=count, budget=budget, precision=precision
    ):
        tally = Tally(steps, samples=model.samples_in(part))
        with in_precision(model, precision):
            output = run(model, part, tally, count, chosen)
            if chosen.compiled and bool(output.isnan().any()):
                run(model, part, Tally(steps, samples=tally.samples), False, EAGER)  # says at which site
        runs.append((output.float() if precision == "bfloat16" else output, tally))
    return _joined(model, runs, "folded" if folded else "streaming", str(chosen))


def require_precision(precision: str) -> None:
    """Raises ConfigError for what is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")


def in_precision(model: SpikingModel, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "bfloat16":
        return torch.autocast(model.device.type, torch.bfloat16)
    return three_products() if precision == "bfloat16x3" else contextlib.nullcontext()


@dataclass(frozen=True)
class PrecisionCheck:
    """Outputs after the last step in another precision, held against float32: the share of equal decisions, the largest
    difference, and the largest output, on `samples` samples."""

    samples: int
    agreement: float
    largest_difference: float
    largest_output: float


def check_precision(
    model: SpikingModel, inputs: Any, *, steps: int, mode: str = "auto", precision: str = "bfloat16"
) -> PrecisionCheck:
    """What a precision changes on one batch."""
    exact, rounded = (
        simulate(model, inputs, steps=steps, mode=mode, count=False, precision=each).outputs[-1]
        for each in ("float32", precision)
    )
    same = (exact.argmax(-1) == rounded.argmax(-1)).double().mean()
    size, largest = model.samples_in(model.prepare(inputs)), exact.abs().max()
    return PrecisionCheck(size, float(same), float((exact - rounded).abs().max()), float(largest))


def _joined(model: SpikingModel, runs: list[tuple[torch.Tensor, Tally]], mode: str, kernel: str) -> Run:
    """One run of the parts of a batch."""
    outputs, tallies = zip(*runs, strict=True)
    if len(runs) == 1:
        return Run(outputs[0], tallies[0], mode, kernel)
    output = torch.cat(outputs, 1 + _axis(model.program.result))
    return Run(output, Tally.joined(tallies), f"{mode}, {tallies[0].samples} samples at once", kernel)


def _folded(
    model: SpikingModel, leaves: tuple[torch.Tensor, ...], tally: Tally, count: bool, kernels: Kernels
) -> torch.Tensor:
    steps = tally.steps
    values = once(model, leaves)
    crossing = {node: repeat(node, value, steps) for node, value in values.items()}
    counter = _counter(model, tally, steps) if count else None
    device = model.device.type
    rounded = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        site, axis = str(marker.args[1]), _axis(marker)
        neuron, threshold = model.neurons[site], model.thresholds[site]
        run = kernels.of_all_steps(neuron, threshold)
        if kernels.watched or run is trajectory:
            require_finite(site, value)
        if run is not trajectory and marker in kernels.linear.sites:
            run = partial(run, emitted=True)
        drive = per_step(value, steps, axis)
        paired = marker not in model.program.fed  # a product of two signals may read it
        dtype = None if value.dtype == torch.float64 else rounded  # which autocast leaves as they are
        out, fired, summed = run(neuron, drive, threshold, masks=count, sums=paired, dtype=dtype)
        if counter is not None and fired is not None:
            counter.fired(marker, fired, summed)
        return fold_back(out, axis)

    output = run_body(model.program, crossing, fire, None if counter is None else counter.after, kernels.linear.layers)
    return per_step(output, steps, _axis(model.program.result))


def _counter(model: SpikingModel, tally: Tally, folded: int) -> Counter:
    return Counter(model.program, tally, model.layers_by_node, folded, model.recipe.product_terms)


def once(model: SpikingModel, leaves: tuple[torch.Tensor, ...]) -> Values:
    """The prefix, never under autocast: it runs once, and the residual stream it begins keeps its precision."""
    with torch.autocast(model.device.type, enabled=False):
        return run_prefix(model.program, leaves)


def repeat(node: torch.fx.Node, value: Any, steps: int) -> Any:
    """A value of the prefix as the folded body reads it: T copies along the batch, sizes times T."""
    if isinstance(value, torch.Tensor):
        if (axis := batch_axis(node)) is None:
            return value
        copies = [1] * value.dim()
        copies[axis] = steps
        return value.repeat(copies)
    if isinstance(value, int) and node.meta.get("batch_scaled"):
        return value * steps
    return value


def _axis(node: torch.fx.Node) -> int:
    """The batch axis of a site, or of the output, of a model that folds: conversion found that it has one."""
    return batch_axis(node)  # type: ignore[return-value]


def _streaming(
    model: SpikingModel, leaves: tuple[torch.Tensor, ...], tally: Tally, count: bool, kernels: Kernels
) -> torch.Tensor:
    crossing = once(model, leaves)
    state: dict[str, torch.Tensor] = {}
    counter = _counter(model, tally, 1) if count else None
    resting = can_rest(model)
    outputs: torch.Tensor | None = None
    for t in range(1, tally.steps + 1):
        if counter is not None:
            counter.step = t - 1
        rest = Rest(resting and t < tally.steps)
        output = step(model, crossing, state, t, counter, kernels, rest)
        # All at once: a small block kept from every step would lie between those that come and go.
        outputs = output.new_empty((tally.steps, *output.shape)) if outputs is None else outputs
        outputs[t - 1] = output
        if rest.holds:
            outputs[t:] = output
            if counter is not None:
                counter.rest()
            break
    return outputs  # type: ignore[return-value]


def step(
    model: SpikingModel,
    crossing: Values,
    state: dict[str, torch.Tensor],
    t: int,
    counter: Counter | None,
    kernels: Kernels = EAGER,
    rest: Rest | None = None,
) -> torch.Tensor:
    """One step of all neurons; `state` (by site) is what step t-1 left and is replaced by what step t leaves. Compiled,
    the output is NaN where a site received what is not finite. `rest` asks whether
    another step would change anything."""

    def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        site = str(marker.args[1])
        neuron, threshold = model.neurons[site], model.thresholds[site]
        run = kernels.of_one_step(neuron, threshold)
        if kernels.watched or run is fire_once:
            require_finite(site, value)
        after, out, spikes = run(neuron, state.get(site), t, value, threshold, count=counter is not None)
        state[site] = after
        if rest is not None:
            rest.ask(run, neuron, after, t, value, threshold, count=counter is not None)
        if counter is not None and spikes is not None:
            counter.fired(marker, spikes[None], None if marker in model.program.fed else (after != 0)[None])
        return out

    return run_body(model.program, crossing, fire, None if counter is None else counter.after, kernels.linear.layers)
