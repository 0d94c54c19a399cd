"""Captured graph, plan, tally -> Ledger: every operator's counts, once for the source and step by step in spikes.

The spiking network is the one `_literal` runs:

    constants (folded before inference)   nothing
    control (masks, positions)            once
    before the first neuron, analog       at every step in rate code, at the first step in sum code
    weight layer on spikes                an accumulate and a shift per spike and synapse (a multiplication where
                                          levels are no powers of two of each other), a read of the weight each
    product of spikes                     the same for its three terms; two sums of spikes and the product as state
    compensated operators                 the operator at every step; a running sum of each tensor that enters the
                                          module and a total of each that leaves it as state, in rate code one
                                          multiplication by 1/t and one by t
    other operators                       at every step
    approximated operators                at most: the spikes of their bases (`bases`), in place of the exact operator
    neurons                               integrate, compare with every level (a naive scan), reset on a spike, state
    output                                summed at every step

A compensation module is a compensated operator together with neighbours that nothing outside reads. The state of what
enters is kept once per tensor, however many read it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch.fx

from .._plan import Operator
from ..errors import ConfigError
from ..measure import Tally
from ..neurons import by_ladder
from ..ops.multiply import ELEMENTWISE
from ..types import Layer, Role
from .bases import RULES as APPROXIMATED
from .costs import COSTS
from .kinds import Counts, Kind, added, times
from .shapes import elements, is_tensor
from .spiking import Book, module_state, neuron, output, product, weight_layer

if TYPE_CHECKING:
    from .._model import SpikingModel


AT_MOST = "approximated, at most"


@dataclass(frozen=True)
class Entry:
    """Counts of one operator, site or output, per sample.

    once -- one dense evaluation in the source; steps -- the spiking network, arrays [T]. operands -- for a dense layer,
    the site of each factor; reads -- words the source reads of tensors that have a site, by site. saved -- words [T]
    the spiking network need not read when each weight or operand is read once a step at most.
    """

    node: str
    op: str
    module: str
    treatment: str
    once: Counts
    steps: Counts
    operands: tuple[str | None, ...] = ()
    reads: tuple[tuple[str, int], ...] = ()
    saved: Counts | None = None


@dataclass(frozen=True)
class Ledger:
    """All entries, and the operators whose cost is unknown: totals are "at least" while there is one."""

    entries: tuple[Entry, ...]
    uncounted: tuple[Operator, ...]
    steps: int

    @property
    def at_most(self) -> bool:
        """Whether the spiking network's totals hold bounds in place of counts."""
        return any(entry.treatment == AT_MOST for entry in self.entries)

    def source(self) -> Counts:
        """Counts of one inference of the source model."""
        return added(entry.once for entry in self.entries)

    def spiking(self) -> Counts:
        """Counts of the spiking network in each step, [T]."""
        return added(entry.steps for entry in self.entries)


def ledger(model: SpikingModel, tally: Tally, *, synapses_per_weight_read: float = 1.0) -> Ledger:
    """Count every operator of the captured graph.

    Arguments: tally -- counts of a run. synapses_per_weight_read -- spikes that share one read of a weight.
    Raises: ConfigError for a tally without counts, or of another network.
    """
    if tally.samples == 0 or set(tally.spikes) != {site.name for site in model.plan.sites}:
        raise ConfigError("there are no counts to price; simulate with count=True, on this network")
    book = Book(model, tally, synapses_per_weight_read)
    entries: list[Entry] = []
    uncounted: list[Operator] = []
    for item in model.plan.operators:
        node = book.flow.nodes[item.node]
        if node in book.flow.varying and is_tensor(node) and node.target not in COSTS:
            uncounted.append(item)
        entries.append(_entry(item, node, book))
    for site in model.plan.sites:
        ladders, threshold = by_ladder(model.neurons[site.name]), model.thresholds[site.name]
        levels = sum(share * len(own.amplitudes(threshold)) for own, share in ladders)
        module = site.name.rpartition(":")[0]
        entries.append(
            Entry(
                site.name, "neuron", module, "neurons", {}, neuron(site, levels, model.neurons[site.name].pulses, book)
            )
        )
    (result,) = (node for node in model.captured.graph.graph.nodes if node.op == "output")
    entries.append(Entry("output", "sum over steps", "", "output", {}, output(result, book)))
    return Ledger(tuple(entries), tuple(uncounted), tally.steps)


def _entry(item: Operator, node: torch.fx.Node, book: Book) -> Entry:
    entry = Entry(item.node, item.op, item.module, "constant", {}, {})
    if node not in book.flow.varying or not is_tensor(node):
        return entry
    layer = book.layers.get(item.node)
    operands = tuple(operand.site for operand in layer.operands) if layer else ()
    rule = COSTS.get(node.target)
    once, reads = _dense(item, node, layer, book, rule(node) if rule else {})
    entry = replace(entry, once=once, operands=operands, reads=reads)
    if item.role is Role.CONSTANT:
        return replace(entry, treatment="control", steps=times(_all(once, reads), book.first))
    if item.node in book.approximated:
        return replace(entry, treatment=AT_MOST, steps=_approximated(item, node, once, reads, book))
    if node not in book.flow.moving:
        steps = times(_all(once, reads), book.every if book.rate else book.first)
        return replace(entry, treatment="before the first neuron", steps=steps)
    if layer is not None and layer.spiking:
        if layer.role is Role.WEIGHT:
            steps, saved = weight_layer(node, layer, once.get(Kind.ADD, 0), book)
            return replace(entry, treatment="weights on spikes", steps=steps, saved=saved)
        steps, saved = product(node, layer, book)
        return replace(entry, treatment="products of spikes", steps=steps, saved=saved)
    steps = times(_all(once, reads), book.every)
    if node in book.flow.modules:
        kept = module_state(node, item.role, book)
        return replace(entry, treatment="compensated", steps=added((steps, times(kept, book.every))))
    return replace(entry, treatment="analog at every step", steps=steps)


def _approximated(
    item: Operator, node: torch.fx.Node, once: Counts, reads: tuple[tuple[str, int], ...], book: Book
) -> Counts:
    """An approximated operator at every step, or before the first neuron as the code has it."""
    moved = {kind: once[kind] for kind in (Kind.WEIGHT_WORDS, Kind.ACTIVATION_WORDS)}
    inside = times(APPROXIMATED[item.op](node, book.approximation), 1 / book.batch)
    steps = _all(added((moved, inside)), reads)
    if node not in book.flow.moving:
        return times(steps, book.every if book.rate else book.first)
    kept = module_state(node, item.role, book) if node in book.flow.modules else {}
    return added((times(steps, book.every), times(kept, book.every)))


def _all(once: Counts, reads: tuple[tuple[str, int], ...]) -> Counts:
    return added((once, {Kind.ACTIVATION_WORDS: sum(words for _, words in reads)}))


def _dense(
    item: Operator, node: torch.fx.Node, layer: Layer | None, book: Book, counts: Counts
) -> tuple[Counts, tuple[tuple[str, int], ...]]:
    """One dense evaluation: arithmetic, and each operand read once, each result written once. A rearrangement is an
    address, not a copy. A gate of two signals is priced as the multiply-accumulate that the papers make of it."""
    counts = times(counts, 1 / book.batch)
    if layer is not None and layer.role is Role.PRODUCT and node.target in ELEMENTWISE:
        counts = {Kind.MULTIPLY_ACCUMULATE: counts[Kind.MULTIPLY]}
    if item.role is Role.STRUCTURAL:
        return counts, ()
    of_sites = {operand.node: operand.site for operand in layer.operands if operand.site} if layer else {}
    weights, words, reads = 0.0, book.size(node), []
    for operand in node.all_input_nodes:
        if not is_tensor(operand):
            continue
        if operand not in book.flow.varying:  # parameters do not grow with the batch
            weights += elements(node) / book.batch if "embedding" in str(node.target) else elements(operand)
        elif operand.name in of_sites:
            reads.append((of_sites[operand.name], book.size(operand)))
        else:
            words += book.size(operand)
    return {**counts, Kind.WEIGHT_WORDS: weights, Kind.ACTIVATION_WORDS: words}, tuple(reads)
