"""Counting while the network runs: spikes at sites, operations at layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
import torch.fx

from . import ops
from ._execute import Program, Values, batch_axis, call, is_shared
from .measure import (
    Tally,
    counts_apart,
    dense_operations,
    fan_out,
    paired,
    per_step,
    product_counts,
    product_operations,
)
from .ops.shape import KEEPS_ALL
from .types import Layer, Role


class Counter:
    """Fills a tally from the masks of who fired (and, for products, whose sum of spikes is not zero after the step).

    Masks hold how often a neuron fired in a step: bool where that is once at most, else uint8. A mask follows its
    tensor from the site through the rearrangements to each reader; there a weight layer counts spikes x fan-out, and a
    product counts the three terms of its compensation,

        spike x spike + spike x accumulated + accumulated x spike,

    by row and column counts; with `terms` 2, spike x new sum + old sum x spike, which is the same in one term less. A
    weight layer that stays analog behind a neuron counts its non-zero inputs at every step, as the published monitor
    does for the head; the sums of the three terms include the step itself, as there, so the first step counts its pairs
    three times. `folded` is how many steps one run of the body carries in its batch. What a batch computes once for all
    its samples counts for each, as if they ran alone.
    """

    def __init__(
        self, program: Program, tally: Tally, layers: Mapping[str, Layer], folded: int, terms: int = 3
    ) -> None:
        self.program = program
        self.tally = tally
        self.layers = layers  # by node name in the marked graph
        self.folded = folded
        self.terms = terms
        self.samples = tally.samples
        self.rows = np.arange(tally.samples)  # which samples of the batch are (still) simulated
        self.step = 0
        self.spikes: dict[str, np.ndarray] = {}
        self.sizes: dict[str, int] = {}
        # By node: spikes in the step, and whose sum is not zero after it, before it.
        self.masks: dict[torch.fx.Node, tuple[torch.Tensor, ...]] = {}
        self.spoken: dict[torch.fx.Node, torch.Tensor] = {}
        self.reach: dict[tuple[str, torch.Size], torch.Tensor] = {}
        if all(batch_axis(node) is not None for node in program.body if ops.is_site(node)):
            tally.by_sample = np.zeros((tally.steps, tally.samples), np.int64)

    def fired(self, marker: torch.fx.Node, fired: torch.Tensor, spoken: torch.Tensor | None) -> None:
        """Masks [T, ...] in the order time first; stored in the layout of the tensor. `spoken` is None where only
        weight layers read the site."""
        counts, copies = self._by_sample(marker, fired), self._copies(marker)
        site = str(marker.args[1])
        self.spikes[site], self.sizes[site] = counts, fired.numel()
        self.tally.add_spikes(site, self.step, counts * copies, fired[0].numel() * copies // self.samples)
        masks = [fired] if spoken is None else [fired, spoken]
        if spoken is not None and self.terms == 2:
            last = self.spoken.get(marker, torch.zeros_like(spoken[:1]))
            masks.append(torch.cat([last, spoken[:-1]]))
            if self.folded < self.tally.steps:
                self.spoken[marker] = spoken[-1:]
        self.masks[marker] = tuple(fold_back(mask, batch_axis(marker)) for mask in masks)

    def _copies(self, *nodes: torch.fx.Node) -> int:
        """How many samples count what is computed of these values once."""
        return self.samples if all(map(is_shared, nodes)) else 1

    def _by_sample(self, marker: torch.fx.Node, fired: torch.Tensor) -> np.ndarray:
        """Spikes per step [T], and those of each sample added to the tally where every site has a batch dimension."""
        axis = batch_axis(marker)
        if axis is None or self.tally.by_sample is None:
            return count_true(fired)
        apart = fired.unflatten(axis + 1, (self.samples, -1)).movedim(axis + 1, 1)
        counts = count_true(apart.flatten(0, 1)).reshape(len(fired), self.samples)
        self.tally.by_sample[self.step : self.step + len(fired), self.rows] += counts
        return counts.sum(1)

    def keep(self, places: torch.Tensor) -> None:
        """Of the samples simulated so far, go on with those at `places`."""
        for marker, spoken in self.spoken.items():
            if (axis := batch_axis(marker)) is not None:
                self.spoken[marker] = keep_samples(spoken, axis + 1, self.samples, places)
        self.rows, self.samples = self.rows[places.cpu().numpy()], len(places)

    def rest(self) -> None:
        """In the steps that follow this one nobody fires; analog layers read what they read now."""
        for layer in self.layers.values():
            if layer.role is Role.WEIGHT and layer.operands[layer.signal_position].site is None:
                counts = self.tally.operations[layer.name]
                counts[self.step + 1 :] += counts[self.step]

    def after(self, node: torch.fx.Node, values: Values) -> None:
        layer = self.layers.get(node.name)
        if layer is not None:
            self._count(layer, node, values)
        elif node not in self.masks:
            sources = [operand for operand in node.all_input_nodes if operand in self.masks]
            if len(sources) == 1 and node.target in KEEPS_ALL and node.args[0] is sources[0]:
                masks = self.masks[sources[0]]
                self.masks[node] = tuple(call(node, {**values, sources[0]: mask}) for mask in masks)  # type: ignore[assignment]
        for dead in self.program.dead_after.get(node, ()):
            self.masks.pop(dead, None)

    def _count(self, layer: Layer, node: torch.fx.Node, values: Values) -> None:
        nodes: tuple[torch.fx.Node, torch.fx.Node] = ops.factors(node)  # type: ignore[assignment]
        tensors, copies = (values[nodes[0]], values[nodes[1]]), self._copies(*nodes)
        dense = dense_operations(node, tensors, values[node]) * copies // (self.folded * self.samples)
        weighs = layer.role is Role.WEIGHT
        counts = self._weight(layer, node, tensors, values) if weighs else self._product(node, nodes)
        self.tally.add_operations(layer.name, self.step, counts.cpu().numpy().astype(np.int64) * copies, dense)

    def _weight(
        self, layer: Layer, node: torch.fx.Node, tensors: tuple[torch.Tensor, ...], values: Values
    ) -> torch.Tensor:
        position = layer.signal_position
        source: torch.fx.Node = ops.factors(node)[position]  # type: ignore[index, assignment]
        axis = batch_axis(source)
        reach = self._reach(node, position, values)
        site = layer.operands[position].site
        mask = tensors[position] != 0 if site is None else self.masks[source][0]
        if site is not None and reach.numel() == 1 and mask.numel() == self.sizes[site]:  # no spike is there twice
            return torch.from_numpy(self.spikes[site]) * int(reach)
        mask = per_step(mask, self.folded, axis)
        if reach.numel() == 1:
            return torch.from_numpy(count_true(mask)) * int(reach)
        counts = mask if axis is None else mask.unflatten(axis + 1, (self.samples, -1)).sum(axis + 1, dtype=torch.int32)
        return (counts * reach).flatten(1).sum(1)

    def _reach(self, node: torch.fx.Node, position: int, values: Values) -> torch.Tensor:
        """How many outputs each spike of an operand reaches: of one sample, or of all where they are not apart."""
        names: tuple[torch.fx.Node, torch.fx.Node] = ops.factors(node)  # type: ignore[assignment]
        if node.target is torch.ops.aten.linear.default:
            return torch.tensor(values[names[1 - position]].shape[0], device="cpu")
        apart = batch_axis(names[position]) is not None
        given = {n: self._first(n, values[n]) if apart else values[n] for n in node.all_input_nodes}
        operand, weight = given[names[position]], given[names[1 - position]]
        key = (node.name, operand.shape)
        if key not in self.reach:

            def rest(probe: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
                others = {n: _small(value, probe.dtype) for n, value in given.items()}
                return call(node, {**others, names[position]: probe, names[1 - position]: ones})

            reach = fan_out(node, position, operand, weight, rest)
            self.reach[key] = reach.flatten()[:1] if bool((reach == reach.flatten()[0]).all()) else reach
        return self.reach[key]

    def _first(self, node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        """The first sample's part, in the first step, of a value that has a batch dimension."""
        axis = batch_axis(node)
        return value if axis is None else value.narrow(axis, 0, value.shape[axis] // (self.folded * self.samples))

    def _product(self, node: torch.fx.Node, nodes: tuple[torch.fx.Node, torch.fx.Node]) -> torch.Tensor:
        axes = (batch_axis(nodes[0]), batch_axis(nodes[1]))
        left, right = (self.masks[operand] for operand in nodes)
        apart = counts_apart(node)
        if apart:  # each mask is counted once, whatever it is paired with
            left, right = (
                tuple(product_counts(mask, side, self.folded, axes[side]) for mask in masks)
                for side, masks in enumerate((left, right))
            )
        pairs = [(left[0], right[1])]  # with the sum after the step
        pairs += [(left[2], right[0])] if self.terms == 2 else [(left[1], right[0]), (left[0], right[0])]
        found = (paired(a, b) if apart else product_operations(node, a, b, self.folded, axes) for a, b in pairs)
        return sum(found)  # type: ignore[return-value]


def count_true(mask: torch.Tensor) -> np.ndarray:
    """Spikes per step of a mask [T, ...]. numpy counts ten times faster than torch, which widens the whole mask."""
    if mask.device.type != "cpu":
        return mask.flatten(1).sum(1, dtype=torch.int64).cpu().numpy()
    narrow = mask[0].numel() < 1 << 24  # bytes, whose sum then has 32 bits, which are summed twice as fast
    count = np.count_nonzero if mask.dtype == torch.bool else partial(np.sum, dtype=np.uint32 if narrow else np.int64)
    return np.array([count(step.numpy()) for step in mask], dtype=np.int64)


def _small(value: object, dtype: torch.dtype) -> object:
    """Other tensors of the call (a bias) in the probe's dtype."""
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def keep_samples(value: torch.Tensor, axis: int, samples: int, places: torch.Tensor) -> torch.Tensor:
    """A value of a batch of `samples` along `axis`, for those at `places` only."""
    kept = value.unflatten(axis, (samples, -1)).index_select(axis, places.to(value.device))
    return kept.flatten(axis, axis + 1)


def fold_back(value: torch.Tensor, axis: int | None) -> torch.Tensor:
    """[T, ..., B, ...] -> [..., T*B, ...]: time back into the batch axis, outermost. One step needs no axis."""
    if value.shape[0] == 1:
        return value[0]
    return value.movedim(0, axis).flatten(axis, axis + 1)  # type: ignore[arg-type, operator]


__all__ = ["Counter", "fold_back", "keep_samples"]
