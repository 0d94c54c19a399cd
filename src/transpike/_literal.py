"""SpikingModel, batch -> Run, in spikes: the network of the paper, step by step, as a chip would have to run it.

Slow on purpose. Nothing here works on running means: signals are what each operator emits in one step, neurons are
membranes, a spike is one of 2n binary channels, weights are multiplied by the levels beforehand, and expectation
compensation modules keep explicit sums. It proves that the fast simulator simulates this network.

    code     value a signal carries after t steps     w(t)     constants are added
    rate     mean of what it emitted, S(t) / t        t        at every step
    sum      sum of what it emitted, S(t)             1        at the first step

With w(t) of the code, a compensated nonlinearity emits w(t) F(S(t)/w(t)) - w(t-1) F(S(t-1)/w(t-1)), and a product of
two spiking signals emits P(t)/w(t) - P(t-1)/w(t-1), P(t) = P(t-1) + a b + a B(t-1) + A(t-1) b, with A, B the sums of
its operands' spikes; with `product_terms` 2, P(t) = P(t-1) + a B(t) + A(t-1) b, which is the same with one term
less. Source: arXiv 2502.21193 (rate); arXiv 2503.00301 in running-estimate form (sum).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.fx
from torch.utils._pytree import tree_map_only

from . import ops
from ._arguments import require_count
from ._execute import call, run_prefix
from ._model import SpikingModel
from ._simulate import Run
from ._state import State, batch_of
from .errors import ConfigError, DataError
from .measure import Tally
from .neurons import Neuron
from .types import Role, Threshold

Values = dict[torch.fx.Node, Any]


@dataclass(frozen=True)
class Spikes:
    """One step of one neuron: `channels` [2n, ...] bool, `amplitudes` [2n], what a spike of each channel is worth; of a
    neuron that fires several times in a step, 2n for each firing."""

    channels: torch.Tensor
    amplitudes: tuple[float, ...]
    dtype: torch.dtype

    @cached_property
    def value(self) -> torch.Tensor:
        worth = torch.tensor(self.amplitudes, dtype=self.dtype, device=self.channels.device)
        return torch.tensordot(worth, self.channels.to(self.dtype), dims=1)


@dataclass(frozen=True)
class Step:
    """What step t gave: the network's `output` after it, what each site `emitted` in it, the `state` it left."""

    t: int
    output: torch.Tensor
    emitted: Mapping[str, Spikes]
    state: State


class BrokenPromise(AssertionError):
    """The literal network did something a spiking network may not do; raised only with check=True."""


class Literal:
    """The network in spikes. `check` asserts its promises as it runs: one channel at most fires per neuron, charge is
    conserved, and no spiking layer multiplies by an activation."""

    def __init__(self, model: SpikingModel, *, check: bool = False) -> None:
        model.require_together("the network in spikes")
        self.model = model
        self.check = check
        self.roles = {operator.node: operator.role for operator in model.plan.operators}
        self.layers = {layer.node: layer for layer in model.plan.layers if layer.spiking}
        codes = {neuron.code for neuron in model.neurons.values()}
        if len(codes) != 1:
            raise ConfigError(f"the neurons of one network must share a code, not {', '.join(sorted(codes))}")
        self.rate = codes == {"rate"}
        self.moving = set(model.program.body)

    def weight(self, t: int) -> float:
        return float(t) if self.rate else 1.0

    def run(self, inputs: Any, *, steps: int, state: State | None = None) -> tuple[Run, State]:
        """Steps state.t + 1 .. steps; `state` continues an earlier run on the same inputs, and stays as it is.

        Raises: ConfigError for steps < 1 or not beyond the state; DataError for inputs of another shape or other than
        the state's, NaN or infinity at a site.
        """
        outputs, first = [], 0 if state is None else state.t
        _check_steps(steps, first)
        tally = Tally(steps - first, samples=self.model.samples_in(self.model.prepare(inputs)))
        for step in self.walk(inputs, steps=steps, state=state):
            outputs.append(step.output)
            for site, spikes in step.emitted.items():
                fired = spikes.channels.sum().reshape(1).cpu().numpy()
                tally.add_spikes(site, step.t - 1 - first, fired, spikes.channels[0].numel() // max(tally.samples, 1))
            state = step.state
        assert state is not None
        return Run(torch.stack(outputs), tally, "literal"), state

    @torch.no_grad()
    def walk(self, inputs: Any, *, steps: int, state: State | None = None) -> Iterator[Step]:
        """The same, one step after the other."""
        state = state or State()
        _check_steps(steps, state.t)
        leaves = self.model.prepare(inputs)
        batch = batch_of(leaves)
        state.check_batch(batch)
        crossing = run_prefix(self.model.program, leaves)
        for t in range(state.t + 1, steps + 1):
            state = state.copy()
            state.batch = batch
            emitted: dict[str, Spikes] = {}
            output = self.step(crossing, state, t, emitted)
            yield Step(t, output, emitted, state)

    def step(self, crossing: Values, state: State, t: int, emitted: dict[str, Spikes]) -> torch.Tensor:
        state.t = t
        values: Values = {}
        for node in self.model.program.body:
            if ops.is_site(node):
                spikes = self._neuron(node, self._arg(node.args[0], values, crossing, t), state)
                values[node] = emitted[str(node.args[1])] = spikes
            else:
                values[node] = self._operator(node, values, crossing, state, t)
            for dead in self.model.program.dead_after.get(node, ()):
                values.pop(dead, None)
        given = values[self.model.program.result]
        state.output = given if state.output is None else state.output + given
        return state.output / self.weight(t)

    # --- neurons -----------------------------------------------------------------------------------------------------

    def _neuron(self, node: torch.fx.Node, drive: torch.Tensor, state: State) -> Spikes:
        """v += x; at most one level fires; v -= what it is worth."""
        site = str(node.args[1])
        if not bool(torch.isfinite(drive).all()):
            raise DataError(f"site {site} received NaN or infinity; check the inputs, or run in a wider dtype")
        neuron, threshold = self.model.neurons[site], self.model.thresholds[site]
        membrane = state.membranes.get(site, torch.zeros_like(drive)) + drive
        firings = []
        for _ in range(neuron.pulses):
            firings.append(to_channels(neuron, threshold, neuron.quantise(membrane, threshold)))
            membrane = membrane - firings[-1].value
            if self.check and int(firings[-1].channels.sum(0).max()) > 1:
                raise BrokenPromise(f"site {site}: two channels of one neuron fired at once in step {state.t}")
        state.membranes[site] = membrane
        return _together(firings)

    # --- operators ---------------------------------------------------------------------------------------------------

    def _operator(self, node: torch.fx.Node, values: Values, crossing: Values, state: State, t: int) -> Any:
        role = self.roles.get(node.name) or self._copied_role(node)
        layer = self.layers.get(node.name)
        if layer is not None and role is Role.WEIGHT:
            return self._weight_layer(node, values, crossing, t)
        if layer is not None:
            return self._product(node, values, crossing, state, t)
        if role in (Role.NONLINEAR, Role.PRODUCT, Role.UNKNOWN):
            return self._compensated(node, values, crossing, state, t)
        if role is Role.STRUCTURAL and any(isinstance(values.get(a), Spikes) for a in node.all_input_nodes):
            return self._rearranged(node, values, crossing)
        return self._linear(node, values, crossing, t)

    def _copied_role(self, node: torch.fx.Node) -> Role:
        """Rearrangements repeated behind a site are not in the plan."""
        return Role.STRUCTURAL if node.target in ops.RULES else Role.CONSTANT

    def _arg(self, argument: Any, values: Values, crossing: Values, t: int) -> Any:
        """What an operand emits in this step; a value of the prefix is a constant, emitted as the code has it."""
        if argument in values:
            return values[argument]
        value = crossing[argument]
        if self._is_signal(argument) and not self.rate and t > 1:
            return torch.zeros_like(value)
        return value

    def _is_signal(self, node: torch.fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    def _linear(self, node: torch.fx.Node, values: Values, crossing: Values, t: int) -> Any:
        """Affine operators and analog weight layers: applied to what arrives, constants included as the code says.

        An affine operator is x -> L x + c. In rate code c is added at every step; in sum code only at the first, so
        later steps give F(x) - F(0).
        """
        read = {n: values[n] if n in values else crossing[n] for n in node.all_input_nodes}
        read = {n: v.value if isinstance(v, Spikes) else v for n, v in read.items()}
        result = call(node, read)
        if self.rate or t == 1 or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        silent = {
            n: tree_map_only(torch.Tensor, torch.zeros_like, v) if n in self.moving else v for n, v in read.items()
        }
        base = call(node, silent)
        return torch.where(torch.isinf(base), torch.zeros_like(base), result - base)

    def _compensated(self, node: torch.fx.Node, values: Values, crossing: Values, state: State, t: int) -> Any:
        """An expectation compensation module: running sums of its inputs, and the total it has emitted."""
        moving = [n for n in node.all_input_nodes if n in self.moving and _adds(values[n])]
        before = state.sums.get(node.name) or tuple(torch.zeros_like(values[n]) for n in moving)
        sums = tuple(s + values[n] for s, n in zip(before, moving, strict=True))
        state.sums[node.name] = sums
        w = self.weight(t)
        means = {n: s / w for n, s in zip(moving, sums, strict=True)}
        read = {
            n: means[n] if n in means else (values[n] if n in values else crossing[n]) for n in node.all_input_nodes
        }
        result = call(node, read)
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        total = result * w
        emitted = total - state.emitted[node.name] if node.name in state.emitted else total
        state.emitted[node.name] = total
        return emitted

    def _weight_layer(self, node: torch.fx.Node, values: Values, crossing: Values, t: int) -> torch.Tensor:
        """Parallel parameter normalisation: one copy of the weights per channel, multiplied by its amplitude before;
        each copy reads binary spikes, so the layer only selects and adds. What it adds besides, as a bias, goes
        through."""
        left, right = ops.factors(node)  # type: ignore[misc]
        spiking, weight = (left, right) if isinstance(values.get(left), Spikes) else (right, left)
        spikes: Spikes = values[spiking]
        weights = crossing[weight] if weight in crossing else values[weight]
        added = self._added(node, (left, right), values, crossing, t)
        silent = {n: torch.zeros_like(value) for n, value in added.items()}
        nothing = torch.zeros_like(spikes.channels[0], dtype=weights.dtype)
        result = call(node, {**added, weight: weights, spiking: nothing})
        for channel, amplitude in zip(spikes.channels, spikes.amplitudes, strict=True):
            binary = channel.to(weights.dtype)
            if self.check and not bool(((binary == 0) | (binary == 1)).all()):
                raise BrokenPromise(f"{node.name}: a spiking layer reads values other than 0 and 1")
            result = result + call(node, {**silent, weight: weights * amplitude, spiking: binary})
        return result

    def _product(self, node: torch.fx.Node, values: Values, crossing: Values, state: State, t: int) -> torch.Tensor:
        """Accumulate terms per step: spike x spike, spike x sum, sum x spike; or spike x new sum, sum x spike. What the
        operator adds to the product goes through."""
        left, right = ops.factors(node)  # type: ignore[misc]
        a, b = values[left].value, values[right].value
        total_a, total_b = state.sums.get(node.name) or (torch.zeros_like(a), torch.zeros_like(b))
        added = self._added(node, (left, right), values, crossing, t)
        silent = {n: torch.zeros_like(value) for n, value in added.items()}

        def times(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return call(node, {**silent, right: y, left: x})

        if self.model.recipe.product_terms == 2:
            fresh = times(a, total_b + b) + times(total_a, b)
        else:
            fresh = times(a, b) + times(a, total_b) + times(total_a, b)
        before = state.products.get(node.name)
        product = fresh if before is None else before + fresh
        state.sums[node.name], state.products[node.name] = (total_a + a, total_b + b), product
        emitted = product / self.weight(t) - (0 if before is None else before / self.weight(t - 1))
        return emitted + call(node, {**added, right: b * 0, left: a * 0}) if added else emitted

    def _added(
        self, node: torch.fx.Node, factors: tuple[Any, Any], values: Values, crossing: Values, t: int
    ) -> dict[torch.fx.Node, torch.Tensor]:
        """What the operands that are no factors (a bias, the sum an addmm adds to) emit in this step."""
        found = {n: self._arg(n, values, crossing, t) for n in node.all_input_nodes if n not in factors}
        return {n: value.value if isinstance(value, Spikes) else value for n, value in found.items()}

    def _rearranged(self, node: torch.fx.Node, values: Values, crossing: Values) -> Spikes:
        """The same rearrangement of every channel."""
        source = next(n for n in node.all_input_nodes if isinstance(values.get(n), Spikes))
        spikes: Spikes = values[source]
        others = {n: values[n] if n in values else crossing[n] for n in node.all_input_nodes if n is not source}
        moved = [call(node, {**others, source: channel}) for channel in spikes.channels]
        return Spikes(torch.stack(moved), spikes.amplitudes, spikes.dtype)


def _adds(value: Any) -> bool:
    """Whether a value is a train whose sum over steps means something; a condition holds for the step it came in."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _check_steps(steps: int, first: int) -> None:
    require_count("steps", steps)
    if steps <= first:
        raise ConfigError(f"the state is that after step {first} already; ask for more steps than {first}, not {steps}")


def to_channels(neuron: Neuron, threshold: Threshold, emitted: torch.Tensor) -> Spikes:
    """Emitted amplitudes -> one binary channel per level and sign."""
    amplitudes = neuron.amplitudes(threshold)
    worth = torch.tensor(amplitudes, dtype=emitted.dtype, device=emitted.device)
    channels = emitted == worth.reshape(-1, *[1] * emitted.dim())
    if not torch.equal(channels.any(0), emitted != 0):
        raise BrokenPromise("a neuron emitted an amplitude that is none of its levels")
    return Spikes(channels, amplitudes, emitted.dtype)


def _together(firings: list[Spikes]) -> Spikes:
    """Several firings of one step: a channel each for every level and sign of every firing."""
    if len(firings) == 1:
        return firings[0]
    amplitudes = tuple(worth for firing in firings for worth in firing.amplitudes)
    return Spikes(torch.cat([firing.channels for firing in firings]), amplitudes, firings[0].dtype)
