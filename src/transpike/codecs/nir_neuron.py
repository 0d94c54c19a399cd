"""A multi-threshold neuron as a sub-graph of NIR primitives: integrator, thresholds, scales, delayed feedback.

    v(t) = v(t-1) + x(t) - s(t-1);   s(t) = sum over levels k of (a_k - a_(k-1)) [v(t) >= b_k], and the same for -v

a_k are the amplitudes of a sign in ascending size, b_k the potential from which the neuron emits a_k; the feedback
passes a Delay of one step, so the graph fixes the order itself.

A ReLU before the neuron needs no node. Compensated, it emits relu(U(t)) - relu(U(t-1)), U the sum of its inputs, so the
neuron behind it sees the potential relu(U) - E = max(U - E, -E), E the sum emitted before. With v = U - E and w = -E,

    max(v, w) >= b   if and only if  v >= b or w >= b;       max(v, w) <= -b   if and only if  v <= -b and w <= -b

Without negative levels E never falls, w never fires, and the neuron on the pre-activation is the whole thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import MissingExtra, ModelError
from ..neurons import Neuron
from ..types import Threshold

if TYPE_CHECKING:
    import nir


@dataclass(frozen=True)
class Rung:
    """`boundary`: the largest float that does not yet reach the level (NIR fires above its threshold, not at it);
    `worth`: by how much the level exceeds the one below."""

    boundary: float
    worth: float


def load_nir() -> Any:
    try:
        import nir
    except ImportError:
        raise MissingExtra("nir", "hardware", "NIR export") from None
    return nir


def ladder(neuron: Neuron, threshold: Threshold, sign: int, dtype: torch.dtype, site: str) -> list[Rung]:
    """The levels of one sign, found in the neuron's own rule by bisection over floats: exact to the last bit.

    Raises ModelError for a threshold below zero, whose amplitudes have the other sign.
    """
    if min(threshold.positive, threshold.negative) < 0:
        raise ModelError(f"site {site} has a negative threshold ({threshold.positive:g}, {threshold.negative:g})")
    sizes = sorted({abs(a) for a in neuron.amplitudes(threshold) if a * sign > 0})
    rungs, below = [], 0.0
    for size in sizes:
        worth = torch.tensor(size, dtype=dtype).item()
        rungs.append(Rung(_last_below(neuron, threshold, sign, worth, dtype), worth - below))
        below = worth
    return rungs


def _last_below(neuron: Neuron, threshold: Threshold, sign: int, size: float, dtype: torch.dtype) -> float:
    """The largest float v >= 0 for which Q(sign v) is smaller than `size`; floats >= 0 are ordered as their bits."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    low, high = 0, int(torch.tensor([4 * size], dtype=dtype).view(integer))
    while high - low > 1:
        middle = (low + high) // 2
        v = torch.tensor([middle], dtype=integer).view(dtype)
        reached = bool(neuron.quantise(v * sign, threshold).abs() >= size)
        low, high = (low, middle) if reached else (middle, high)
    return float(torch.tensor([low], dtype=integer).view(dtype))


@dataclass
class Part:
    """A sub-graph under construction; every node has the neuron's shape."""

    shape: tuple[int, ...]
    dtype: Any
    nodes: dict[str, Any]
    edges: list[tuple[str, str]]

    def full(self, value: float) -> np.ndarray:
        return np.full(self.shape, value, self.dtype)

    def add(self, name: str, node: Any, *sources: str) -> str:
        self.nodes[name] = node
        self.edges.extend((source, name) for source in sources)
        return name


def neuron_graph(
    neuron: Neuron, threshold: Threshold, shape: tuple[int, ...], dtype: torch.dtype, *, site: str, behind_relu: bool
) -> nir.NIRGraph:
    """The sub-graph of one site: Input "input" (what arrives in a step), Output "output" (what is emitted in it)."""
    nir = load_nir()
    up, down = (ladder(neuron, threshold, sign, dtype, site) for sign in (1, -1))
    part = Part(shape, torch.empty(0, dtype=dtype).numpy().dtype, {}, [])
    part.add("input", nir.Input(np.array(shape)))
    part.add("reset", nir.Scale(part.full(-1.0)))
    part.add("feedback", nir.Delay(part.full(1.0)), "reset")
    watched = [part.add("membrane", nir.I(part.full(1.0)), "input", "feedback")]
    if behind_relu and down:
        watched.append(part.add("taken_back", nir.I(part.full(1.0)), "feedback"))
    spikes = [_fires(nir, part, f"up_{k}", watched, rung, 0.5) for k, rung in enumerate(up)]
    if down:
        mirrored = [part.add(f"minus_{name}", nir.Scale(part.full(-1.0)), name) for name in watched]
        lower = [Rung(rung.boundary, -rung.worth) for rung in down]
        spikes += [_fires(nir, part, f"down_{k}", mirrored, r, len(mirrored) - 0.5) for k, r in enumerate(lower)]
    if not spikes:  # a silent neuron: thresholds of both signs are zero
        spikes = [part.add("silence", nir.Scale(part.full(0.0)), "membrane")]
    part.add("output", nir.Output(np.array(shape)), *spikes)
    part.edges.extend((spike, "reset") for spike in spikes)
    return nir.NIRGraph(part.nodes, part.edges, metadata={"site": site})


def _fires(nir: Any, part: Part, name: str, watched: list[str], rung: Rung, votes: float) -> str:
    """One level: its Threshold on each watched potential, more than `votes` of which must pass, then its worth."""
    passed = [
        part.add(f"{name}_threshold{i or ''}", nir.Threshold(part.full(rung.boundary)), potential)
        for i, potential in enumerate(watched)
    ]
    if len(passed) > 1:
        passed = [part.add(f"{name}_votes", nir.Threshold(part.full(votes)), *passed)]
    return part.add(f"{name}_worth", nir.Scale(part.full(rung.worth)), *passed)
