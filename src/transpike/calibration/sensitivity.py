"""Marked graph, batches -> Sensitivity by site: how much noise at a site moves the network's prediction."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.fx

from .. import ops
from .._execute import batch_axis
from ..errors import CalibrationError
from ..measure import dense_operations

PROBES = 2  # random sign vectors; each costs a backward pass, and samples, neurons and probes are all averaged over


@dataclass
class Sensitivity:
    """Sums over `samples`; per sample after division.

    information -- sum over a site's neurons of the expected squared derivative of the log-likelihood: independent noise
    of variance v on every neuron moves the prediction by a KL divergence of v/2 times that. neurons -- of the site.
    operations -- multiply-accumulates of the layers that read it, so operations / neurons is what one spike costs.
    marginals -- the information by position along every dimension of the site's tensor (of size 1 along the batch).
    """

    information: float = 0.0
    neurons: int = 0
    operations: int = 0
    marginals: tuple[torch.Tensor, ...] = ()


class Probing(torch.fx.Interpreter):
    """Runs the marked graph, keeps every site's tensor for differentiation and counts the operations behind it."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.tensors: dict[str, torch.Tensor] = {}
        self.operations: dict[str, int] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        pair = ops.factors(n) if n.op == "call_function" and isinstance(result, torch.Tensor) else None
        if pair is not None and all(isinstance(self.env.get(factor), torch.Tensor) for factor in pair):
            self.operations[n.name] = dense_operations(n, tuple(self.env[f] for f in pair), result)
        return result

    def call_function(self, target: object, args: tuple, kwargs: dict) -> object:
        if target is not ops.site:
            return super().call_function(target, args, kwargs)  # type: ignore[arg-type]
        value, name = args
        value = value if value.requires_grad else value.clone().requires_grad_()
        self.tensors[name] = value
        return value


@torch.inference_mode(False)
def fisher_information(
    marked: torch.fx.GraphModule,
    readers: Mapping[str, tuple[str, ...]],
    batch_axes: Mapping[str, int | None],
    batches: Iterable[tuple[tuple, int]],
) -> dict[str, Sensitivity]:
    """Fisher information of the prediction about every site, unlabelled, in a few backward passes per batch.

    Arguments: readers -- by site, the layers' nodes in the marked graph that read it. batch_axes -- by site, where its
    tensor has the batch. batches -- (inputs, samples).
    The prediction is p = softmax over the last dimension of the (first) output. A probe is z = sqrt(p) r - p <sqrt(p),
    r> with random signs r: its covariance is diag(p) - p p', the Fisher matrix of the logits, so the squared gradient
    of <z, logits> is on average the information. Several predictions of a sample (tokens) count with their mean. The
    signs are drawn once, so that neither the order nor the batching of samples matters.
    Source: empirical use of the diagonal Fisher for bit allocation (HAWQ, FIT); per site and for spikes it is ours.
    """
    found: dict[str, Sensitivity] = {}
    if any(tensor.is_inference() for tensor in (*marked.parameters(), *marked.buffers())):
        marked = copy.deepcopy(marked)  # what was made in inference mode has no derivative, its copy has
    for leaves, samples in batches:
        leaves = tuple(leaf.clone() if leaf.is_inference() else leaf for leaf in leaves)
        for name, part in _probe(marked, readers, batch_axes, leaves).items():
            entry = found.setdefault(name, Sensitivity())
            entry.information += part.information
            entry.neurons = part.neurons // samples
            entry.operations = part.operations // samples
            pairs = zip(entry.marginals or [0.0] * len(part.marginals), part.marginals, strict=True)
            entry.marginals = tuple(before + more for before, more in pairs)
            if not entry.information < float("inf"):
                raise CalibrationError(f"the derivative at site {name} is not finite; use another range rule")
    return found


def _probe(
    marked: torch.fx.GraphModule,
    readers: Mapping[str, tuple[str, ...]],
    batch_axes: Mapping[str, int | None],
    leaves: tuple,
) -> dict[str, Sensitivity]:
    probing = Probing(marked)
    with torch.enable_grad():
        output = probing.run(*leaves)
        logits = output[0] if isinstance(output, (tuple, list)) else output
        axis = batch_axis(marked.graph.output_node().all_input_nodes[0]) or 0
        if not (isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.dim() >= 2):
            raise CalibrationError(
                "balanced thresholds need a model whose first output holds class scores; use another recipe, such as "
                "differential"
            )
        logits = logits.movedim(axis, 0)
        squares: dict[str, torch.Tensor] = {}
        for probe in _probes(logits.detach()):
            gradients = torch.autograd.grad(
                logits, list(probing.tensors.values()), probe, retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(probing.tensors, gradients, strict=True):
                if gradient is not None:
                    squares[name] = squares.get(name, 0.0) + gradient.double().square() / PROBES
    predictions = max(logits[0].numel() // logits.shape[-1], 1)
    return {
        name: _summed(
            squares.get(name, torch.zeros_like(value)) / predictions,
            batch_axes.get(name),
            sum(probing.operations[node] for node in readers[name]),
        )
        for name, value in probing.tensors.items()
    }


def _summed(squares: torch.Tensor, batch_axis: int | None, operations: int) -> Sensitivity:
    def along(axis: int) -> torch.Tensor:
        others = tuple(other for other in range(squares.dim()) if other != axis)
        whole = squares.sum(others) if others else squares
        return whole.sum(0, keepdim=True) if axis == batch_axis else whole

    marginals = tuple(along(axis).cpu() for axis in range(squares.dim()))
    return Sensitivity(float(squares.sum()), squares.numel(), operations, marginals)


def _probes(logits: torch.Tensor) -> Iterable[torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    p = torch.nn.functional.softmax(logits.float(), -1)
    for _ in range(PROBES):
        signs = torch.randint(0, 2, logits.shape[1:], generator=generator, device="cpu") * 2.0 - 1.0
        root = p.sqrt() * signs.to(p.device)
        yield (root - p * root.sum(-1, keepdim=True)).to(logits.dtype)
