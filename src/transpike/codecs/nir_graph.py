"""A converted network as a NIR graph, where NIR can hold it exactly; docs/hardware.md says which network that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from .. import ops
from .._capture import module_path
from .._place import op_name
from ..errors import ConfigError, ModelError
from ..files import write_atomically
from ..types import Layer, Role
from .layers import bound, treatments
from .nir_draft import Draft, Signal
from .nir_file import code_of, metadata, model_dtype
from .nir_layers import folded_layer, write_layer, write_neuron
from .nir_neuron import load_nir
from .nir_operators import PASSES_RELU, RULES, Place
from .nir_segments import write_segments

if TYPE_CHECKING:
    import nir

    from .._model import SpikingModel

ADVICE = "export its weights and events instead, or its linear segments (segments=True, --segments)"


@dataclass(frozen=True)
class Refusal:
    """An operator NIR cannot hold."""

    op: str
    module: str
    treatment: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} in {self.module or 'the model'} ({self.why})"


def write_nir(model: SpikingModel, path: str | Path, *, segments: bool = False) -> Path:
    """Write the network to a NIR file; or, with `segments`, to a folder of them (`nir_segments.write_segments`).

    The graph holds linear and convolution layers, their neurons, ReLU before a neuron, batch normalisation, sums,
    constants, average pooling and flattening. Raises ModelError naming each operator and module that NIR cannot hold,
    before anything is written; MissingExtra without the package nir; ConfigError when the file cannot be written.
    """
    if segments:
        return write_segments(model, path)
    if Path(path).is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; name a file")
    graph = to_nir(model)
    return write_atomically(Path(path), lambda temporary: load_nir().write(temporary, graph))


def to_nir(model: SpikingModel) -> nir.NIRGraph:
    """The whole network as a graph in memory; see `write_nir`."""
    load_nir()
    code = code_of(model)
    _require_plain_batch(model)
    place = Place(Draft(model_dtype(model), code == "rate"), model.program, {})
    layers, words = {layer.node: layer for layer in model.plan.layers}, treatments(model)
    refusals: list[Refusal] = []
    sites: dict[str, str] = {}
    for node in model.program.module.graph.nodes:
        if node.op == "placeholder":
            shape = tuple(node.meta["val"].shape[1:])
            place.signals[node] = Signal((place.draft.port("Input", "input", Signal((), shape)),), shape)
        elif words.get(node.name, "constant") != "constant" and any(n in place.signals for n in node.all_input_nodes):
            try:
                place.signals[node] = _write(model, place, node, layers.get(node.name), sites)
            except ModelError as error:
                refusals.append(Refusal(op_name(node), module_path(node), words[node.name], str(error)))
                place.signals[node] = Signal(("input",), _shape(node))  # go on, to name everything at once
    final = place.of(model.program.result)
    if final is None or final.relu:
        refusals.append(Refusal("the output", "", "compensated", "an analog ReLU" if final else "a constant"))
    if refusals:
        raise ModelError(_refusal(refusals))
    place.draft.port("Output", "output", final)  # type: ignore[arg-type]
    return place.draft.graph(metadata(code, sites))


def _write(
    model: SpikingModel, place: Place, node: torch.fx.Node, layer: Layer | None, sites: dict[str, str]
) -> Signal:
    if ops.is_site(node):
        return write_neuron(model, place.draft, node, place.signals[node.args[0]], sites)  # type: ignore[index]
    analog = [s for operand in node.all_input_nodes if (s := place.of(operand)) is not None and s.relu]
    if analog and node.target not in PASSES_RELU:
        raise ModelError(f"reads {analog[0].relu} as an analog value, where NIR has ReLU only before a neuron")
    if layer is not None and layer.role is Role.PRODUCT:
        raise ModelError("a product of two signals")
    if layer is not None:
        operand: Any = ops.factors(node)[layer.signal_position]  # type: ignore[index]
        return write_layer(place.draft, folded_layer(model, layer, node), place.signals[operand])
    rule = RULES.get(node.target)
    if rule is None:
        raise ModelError(f"{treatments(model)[node.name]}, with no NIR node for it")
    return rule(place, node, bound(node))


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else ()


def _require_plain_batch(model: SpikingModel) -> None:
    inputs = model.captured.inputs
    if len(inputs) != 1 or not inputs[0].dtype.is_floating_point:
        names = ", ".join(spec.name for spec in inputs)
        raise ModelError(f"a NIR graph reads one real-valued input, and this model reads {names}; {ADVICE}")
    if model.unfoldable or inputs[0].batch_axis != 0:
        why = model.unfoldable or "the batch is not the first dimension"
        raise ModelError(f"NIR describes one sample, and this model ties its batch in ({why}); {ADVICE}")


def _refusal(refusals: list[Refusal]) -> str:
    """One sentence: what computes before what only rearranges, each kind of operator once, with where it is first."""
    kinds: dict[str, list[Refusal]] = {}
    for refusal in sorted(refusals, key=lambda r: r.treatment in ("rearranged", "affine")):
        kinds.setdefault(refusal.op, []).append(refusal)
    named = [f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}" for found in kinds.values()]
    more = f"; {len(named) - 6} more kinds" if len(named) > 6 else ""
    relu = any("ReLU" in refusal.why for refusal in refusals)
    hint = "; relu_neurons (--relu-neurons DATA) gives every ReLU a neuron" if relu else ""
    return f"NIR cannot hold {len(refusals)} operator(s): {'; '.join(named[:6])}{more}{hint}; {ADVICE}"
