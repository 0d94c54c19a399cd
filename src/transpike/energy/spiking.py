"""What the operators of the spiking network do in each step, [T] per sample. `ledger` says which is which."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, frexp, log2
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.fx

from ..measure import Tally
from ..neurons import plain
from ..types import Layer, Role, Site
from .kinds import Counts, Kind, added
from .shapes import MODULES, Flow, elements, flow, is_tensor

if TYPE_CHECKING:
    from .._model import SpikingModel


class Book:
    """What every entry is written from."""

    def __init__(self, model: SpikingModel, tally: Tally, reuse: float) -> None:
        self.tally = tally
        self.flow: Flow = flow(model.captured.graph.graph, model.plan)
        self.layers: Mapping[str, Layer] = {layer.node: layer for layer in model.plan.layers}
        self.batch = 1 if model.captured.free_batch else model.captured.batch_size  # sizes in the graph are of a batch
        self.every = np.ones(tally.steps)
        self.first = np.eye(1, tally.steps)[0]
        self.rate = any(neuron.code == "rate" for neuron in model.neurons.values())
        self.reuse = reuse
        self.uneven = {
            site for site, neuron in model.neurons.items() if _uneven(plain(neuron).amplitudes(model.thresholds[site]))
        }
        self.approximated = model.approximated
        self.approximation = model.recipe.operators
        self.summed: set[torch.fx.Node] = set()  # tensors whose running sum some module already keeps

    def size(self, node: Any) -> float:
        return elements(node) / self.batch

    def scaling(self, layer: Layer) -> Kind:
        """What a spike's level does to a weight: a shift where levels are powers of two of each other."""
        sites = [operand.site for operand in layer.operands if operand.site]
        return Kind.MULTIPLY if any(site in self.uneven for site in sites) else Kind.SHIFT

    def spikes(self, site: str) -> np.ndarray:
        return self.tally.spikes[site] / self.tally.samples


def _uneven(amplitudes: tuple[float, ...]) -> bool:
    """Whether some level of a sign is no power of two times another."""
    signs = ([a for a in amplitudes if a > 0], [-a for a in amplitudes if a < 0])
    mantissas = [{round(frexp(level / max(side))[0], 9) for level in side} for side in signs if side]
    return any(found != {0.5} for found in mantissas)


def weight_layer(node: torch.fx.Node, layer: Layer, bias: float, book: Book) -> tuple[Counts, Counts]:
    """Counts, and the words that are not read when each weight is read once a step at most. `bias`: adds of one."""
    operations = book.tally.operations[layer.name] / book.tally.samples
    weight = book.flow.nodes[layer.operands[1 - layer.signal_position].node]
    reads = operations / book.reuse
    steps: Counts = {
        Kind.ACCUMULATE: operations,
        book.scaling(layer): operations,
        Kind.WEIGHT_WORDS: reads,
        Kind.ADD: bias * (book.every if book.rate else book.first),
        Kind.ACTIVATION_WORDS: book.size(node) * book.every,
    }
    return steps, {Kind.WEIGHT_WORDS: np.maximum(reads - elements(weight), 0)}


def product(node: torch.fx.Node, layer: Layer, book: Book) -> tuple[Counts, Counts]:
    """Counts, and the words that are not read when each operand is read once a step at most."""
    operations = book.tally.operations[layer.name] / book.tally.samples
    sites = sorted({operand.site for operand in layer.operands if operand.site})
    spikes = sum((book.spikes(site) for site in sites), 0 * book.every)
    size = book.size(node) * book.every
    reads = operations / book.reuse
    steps: Counts = {
        Kind.ACCUMULATE: operations,
        book.scaling(layer): operations,
        Kind.INTEGRATE: spikes,  # into the two sums of spikes
        Kind.STATE_WORDS: reads + 2 * spikes + (2 * size if book.rate else 0),
        Kind.ADD: size if book.rate else 0 * size,
        Kind.ACTIVATION_WORDS: size,
    }
    steps = added((steps, {Kind.MULTIPLY: 2 * size if book.rate else 0 * size}))  # P(t) / t and P(t-1) / (t-1)
    whole = sum(book.size(book.flow.nodes[operand.node]) for operand in layer.operands)
    return steps, {Kind.STATE_WORDS: np.maximum(reads - whole, 0)}


def module_state(node: torch.fx.Node, role: Role, book: Book) -> Counts:
    """What expectation compensation adds to a module's node: a running sum per tensor that enters, a total if it
    leaves."""
    outside = book.flow.moving - book.flow.modules
    entering = {operand for operand in node.all_input_nodes if operand in outside and is_tensor(operand)}
    fresh = entering - book.summed if role in MODULES else set()
    book.summed |= fresh
    came = sum(book.size(n) for n in fresh)
    left = book.size(node) if any(user not in book.flow.modules for user in node.users) else 0
    return {
        Kind.ADD: came + left,
        Kind.MULTIPLY: came + left if book.rate else 0,
        Kind.STATE_WORDS: 2 * (came + left),
    }


def neuron(site: Site, levels: float, pulses: int, book: Book) -> Counts:
    """Integrate and compare in every step, subtract when a spike is sent; the spike goes to every reader with its
    level and address. A neuron that may fire several times in a step compares again after every spike.

    Arguments: levels -- of a neuron, on average.
    """
    neurons, spikes = book.tally.neurons[site.name], book.spikes(site.name)
    width = ceil(log2(max(levels, 1))) + ceil(log2(max(neurons, 1)))
    return {
        Kind.INTEGRATE: neurons + spikes,
        Kind.COMPARE: levels * (neurons * book.every + (spikes if pulses > 1 else 0)),
        Kind.STATE_WORDS: 2 * neurons * book.every,
        Kind.EVENT_BITS: len(site.reads) * width * spikes,
    }


def output(node: torch.fx.Node, book: Book) -> Counts:
    """The sum of what the network emits, and one multiplication by 1/T when it is read."""
    size = sum(book.size(value) for value in node.all_input_nodes)
    steps: Counts = {Kind.ADD: size * book.every, Kind.STATE_WORDS: 2 * size * book.every}
    if book.rate:
        steps[Kind.MULTIPLY] = size * book.first
    return steps
