"""A NIR graph under construction: nodes, edges, and signals as sums of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .nir_neuron import load_nir


@dataclass(frozen=True)
class Signal:
    """What a value of the source graph is in NIR: the sum of the nodes `sources`, of `shape` without the batch.

    relu -- the ReLU, by name, that still stands before whoever reads the value: only a neuron can take it in.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    relu: str = ""

    def at(self, *sources: str, shape: tuple[int, ...] | None = None) -> Signal:
        return replace(self, sources=sources, shape=self.shape if shape is None else shape)


@dataclass
class Draft:
    """rate -- constants are added at every step (rate code), not only at the first (sum code)."""

    dtype: torch.dtype
    rate: bool
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    reserved: set[str] = field(default_factory=lambda: {"input", "output"})

    def array(self, value: torch.Tensor) -> np.ndarray:
        return value.detach().cpu().to(self.dtype).contiguous().numpy()

    def add(self, name: str, node: Any, shape: tuple[int, ...], *sources: str) -> str:
        """Add a node that reads `shape`, under a free name near `name`; NIR has no double edges, so a source named
        twice passes through a Scale of 1 the second time."""
        name = self._free(name)
        self.nodes[name] = node
        for position, source in enumerate(sources):
            if source in sources[:position]:
                again = load_nir().Scale(self.array(torch.ones(shape)))
                source = self.add(f"{name}:again", again, shape, source)
            self.edges.append((source, name))
        return name

    def _free(self, name: str) -> str:
        """HDF5 takes / for a folder, and NIR has one name space."""
        name, number = name.replace("/", "|"), 1
        free = name
        while free in self.nodes or free in self.reserved:
            number += 1
            free = f"{name}#{number}"
        return free

    def port(self, kind: str, name: str, signal: Signal) -> str:
        """An Input or Output under exactly this name."""
        self.reserved.discard(name)
        return self.add(name, getattr(load_nir(), kind)(np.array(signal.shape)), signal.shape, *signal.sources)

    def scaled(self, name: str, signal: Signal, factor: torch.Tensor) -> Signal:
        """signal * factor, element by element."""
        full = torch.broadcast_to(factor.to(self.dtype), signal.shape)
        return signal.at(self.add(name, load_nir().Scale(self.array(full)), signal.shape, *signal.sources))

    def shifted(self, name: str, signal: Signal, shift: torch.Tensor) -> Signal:
        """signal + a constant of its shape, at every step, or at the first only (sum code).

        A Threshold below zero turns zeros into the constant 1; less itself one step later, it is 1 at the first step.
        """
        nir, shape, full = load_nir(), signal.shape, torch.broadcast_to(shift.to(self.dtype), signal.shape)
        zero = self.add(f"{name}:zero", nir.Scale(self.array(torch.zeros(shape))), shape, signal.sources[0])
        one = self.add(f"{name}:one", nir.Threshold(self.array(-torch.ones(shape))), shape, zero)
        added = [self.add(f"{name}:shift", nir.Scale(self.array(full)), shape, one)]
        if not self.rate:
            later = self.add(f"{name}:later", nir.Delay(self.array(torch.ones(shape))), shape, one)
            added.append(self.add(f"{name}:no_more", nir.Scale(self.array(-full)), shape, later))
        return signal.at(*signal.sources, *added)

    def linear(self, name: str, signal: Signal, weight: torch.Tensor, bias: torch.Tensor | None) -> Signal:
        """weight [out, in] on a vector, or on every column of [in, n]."""
        if len(signal.shape) == 2:
            return self.conv(name, signal, weight.unsqueeze(-1), bias, stride=(1,), padding=(0,), dilation=(1,))
        nir, matrix = load_nir(), self.array(weight)
        native = bias is not None and self.rate
        node = nir.Affine(matrix, self.array(bias)) if native else nir.Linear(matrix)  # type: ignore[arg-type]
        made = signal.at(self.add(name, node, signal.shape, *signal.sources), shape=(weight.shape[0],))
        return made if bias is None or native else self.shifted(name, made, bias)

    def conv(
        self, name: str, signal: Signal, weight: torch.Tensor, bias: torch.Tensor | None, *,
        stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...],
    ) -> Signal:  # fmt: skip
        """A convolution without groups over [in, n] or [in, h, w]."""
        nir, space = load_nir(), signal.shape[1:]
        native = bias if bias is not None and self.rate else torch.zeros(weight.shape[0])
        arguments = {"weight": self.array(weight), "groups": 1, "bias": self.array(native)}
        if len(space) == 1:
            node = nir.Conv1d(space[0], stride=stride[0], padding=padding[0], dilation=dilation[0], **arguments)
        else:
            node = nir.Conv2d(space, stride=stride, padding=padding, dilation=dilation, **arguments)
        shape = tuple(map(int, node.output_type["output"]))
        made = signal.at(self.add(name, node, signal.shape, *signal.sources), shape=shape)
        if bias is None or self.rate:
            return made
        return self.shifted(name, made, bias.reshape(-1, *[1] * len(space)))

    def graph(self, metadata: dict[str, str]) -> Any:
        return load_nir().NIRGraph(self.nodes, self.edges, metadata=metadata)
