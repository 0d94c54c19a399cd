"""Weights for hardware: one safetensors file per weight layer and a JSON manifest, specified in docs/hardware.md."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
import torch.fx

from .. import ops
from .._capture import module_path
from .._place import op_name
from ..errors import ConfigError
from ..files import put_json, write_together
from ..neurons import plain
from .bundle import FRAMES
from .frame_file import frame_tensors
from .layers import WeightLayer, literals, treatments, weight_layers

if TYPE_CHECKING:
    from .._model import SpikingModel

FORMAT, VERSION = "transpike-weights", 1
MANIFEST = "manifest.json"


def write_weights(
    model: SpikingModel, folder: str | Path, *, scaled: bool = False, fold_batch_norm: bool = False
) -> Path:
    """Write the weights, biases, thresholds and levels of every layer, and what stays outside spikes, by name.

    Arguments: scaled -- also write, for each spiking layer, one copy of the weights per channel of the neuron it reads,
    multiplied by what a spike of that channel is worth (parallel parameter normalisation): then a layer only selects
    and adds. Where thresholds of a site's neurons differ, their scales are a file of their own.
    fold_batch_norm -- write batch normalisation into the weights of the layer that it alone reads.
    All files are written whole before the first is put in place; the manifest holds the checksums of the others. Memory
    beside the model: one layer with its copies. Raises ConfigError when the folder cannot be written.
    """
    model.require_together("an export of weights")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write to {folder}: it is a file; name a folder")
    layers, without = weight_layers(model, fold_batch_norm=fold_batch_norm)
    entries: list[dict[str, Any]] = []

    def put_layer(path: Path, layer: WeightLayer, name: str) -> None:
        tensors = _tensors(model, layer, scaled)
        _save(tensors, path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries.append({"file": name, "sha256": digest, **_entry(layer, tensors)})

    manifest = {
        **_preamble(model),
        "scaled": scaled,
        "fold_batch_norm": fold_batch_norm,
        "frames": FRAMES if model.calibration.frames else None,
        "sites": [_site(model, name) for name in model.neurons],
        "layers": entries,
        "graph": _graph(model, layers, without),
    }
    names = {f"layer_{number:04d}.safetensors": layer for number, layer in enumerate(layers)}
    writers = {folder / name: partial(put_layer, layer=layer, name=name) for name, layer in names.items()}
    if model.calibration.frames:
        frames = frame_tensors(model.calibration.frames)
        writers[folder / FRAMES] = lambda path: _save(frames, path)
    put_manifest = partial(put_json, data=manifest, called=folder / MANIFEST)  # last: then `entries` is full
    write_together({**writers, folder / MANIFEST: put_manifest})
    return folder


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk arrives as this
        raise OSError(str(error)) from error


def _tensors(model: SpikingModel, layer: WeightLayer, scaled: bool) -> dict[str, torch.Tensor]:
    """weight, bias and, when asked, weight.0, weight.1, ...: one copy per channel of the neuron the layer reads."""
    found = {"weight": layer.weight.cpu().contiguous().clone()}
    if layer.bias is not None:
        found["bias"] = layer.bias.cpu().contiguous().clone()
    if scaled and layer.site is not None:
        amplitudes = model.neurons[layer.site].amplitudes(model.thresholds[layer.site])
        found |= {f"weight.{channel}": found["weight"] * worth for channel, worth in enumerate(amplitudes)}
    return found


def _entry(layer: WeightLayer, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    norm = layer.batch_norm
    return {
        "name": layer.layer.name,
        "node": layer.node.name,
        "module": layer.layer.module,
        "op": layer.layer.op,
        "site": layer.site,
        "analog": layer.layer.reason,
        "signal_operand": layer.layer.signal_position,
        "geometry": layer.geometry,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "dtype": str(layer.weight.dtype).removeprefix("torch."),
        "folded_batch_norm": None if norm is None else {"node": norm.name, "module": module_path(norm)},
    }


def _site(model: SpikingModel, name: str) -> dict[str, Any]:
    site = next(site for site in model.plan.sites if site.name == name)
    neuron, threshold = model.neurons[name], model.thresholds[name]
    return {
        "name": name,
        "kind": str(site.kind),
        "shape": list(site.shape),
        "batch_axis": site.batch_axis,
        "neuron": {"type": neuron.name, "code": neuron.code, **asdict(plain(neuron))},  # type: ignore[call-overload]
        "thresholds": threshold.to_json(),
        "amplitudes": list(neuron.amplitudes(threshold)),
        "read_by": [reader for reader, _ in site.reads],
    }


def _graph(model: SpikingModel, layers: list[WeightLayer], without: dict[str, str]) -> list[dict[str, Any]]:
    """Every operator in the order it runs: where it reads, and whether it spikes, stays analog, or is compensated."""
    numbers = {layer.node: number for number, layer in enumerate(layers)}
    folded = {layer.batch_norm: f"folded into {layer.layer.name}" for layer in layers if layer.batch_norm is not None}
    words = treatments(model)
    rows = []
    for node in model.program.module.graph.nodes:
        if node.op != "call_function":
            continue
        marker = ops.is_site(node)
        rows.append(
            {
                "node": node.name,
                "op": op_name(node),
                "module": module_path(node),
                "treatment": folded.get(node) or without.get(node.name) or words[node.name],
                "inputs": [operand.name for operand in node.all_input_nodes if operand.op != "get_attr"],
                "parameters": [_parameter(operand) for operand in node.all_input_nodes if operand.op == "get_attr"],
                "arguments": {} if marker else literals(node),
                "site": str(node.args[1]) if marker else None,
                "layer": numbers.get(node),
            }
        )
    return rows


def _parameter(node: torch.fx.Node) -> str:
    return str(node.target).removeprefix("model.")


def _preamble(model: SpikingModel) -> dict[str, Any]:
    from .. import __version__

    leaves = [node for node in model.program.module.graph.nodes if node.op == "placeholder"]
    inputs = zip(model.captured.inputs, leaves, strict=True)
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "transpike_version": __version__,
        "recipe": model.recipe.to_json(),
        "inputs": [{"name": spec.name, "shape": list(spec.shape), "node": leaf.name} for spec, leaf in inputs],
        "output": model.program.result.name,
    }
