"""The spiking segments of a network that NIR cannot hold as a whole: each neuron with the weight layers behind it."""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from .. import ops
from .._capture import module_path
from .._place import op_name
from ..errors import ConfigError, ModelError
from ..files import put_json, write_together
from ..types import Layer, Role
from .layers import foldable, treatments
from .nir_draft import Draft, Signal
from .nir_file import code_of, metadata, model_dtype
from .nir_layers import folded_layer, write_layer, write_neuron
from .nir_neuron import load_nir

if TYPE_CHECKING:
    from .._model import SpikingModel

FORMAT, VERSION = "transpike-nir-segments", 1
MANIFEST = "manifest.json"


def write_segments(model: SpikingModel, folder: str | Path) -> Path:
    """Write one NIR file per site (its neuron and the weight layers that read it) and a JSON manifest, last.

    The manifest lists the segments, and under `outside` every operator that is in none, with op, module and why.
    Raises as `write_nir`, but no operator is refused.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write to {folder}: it is a file; name a folder")
    load_nir()
    code = code_of(model)
    written: list[dict[str, Any]] = []
    inside: set[torch.fx.Node] = set()
    layers = {layer.node: layer for layer in model.plan.layers if layer.role is Role.WEIGHT}
    markers = [node for node in model.program.module.graph.nodes if ops.is_site(node)]

    def put_segment(path: Path, marker: torch.fx.Node, name: str) -> None:
        draft, sites = Draft(model_dtype(model), code == "rate"), {}
        entry, covered = _segment(model, draft, marker, layers, sites)
        load_nir().write(path, draft.graph(metadata(code, sites)))
        written.append({"file": name, **entry})
        inside.update(covered)

    def put_manifest(path: Path) -> None:  # last: then `written` and `inside` are full
        put_json(path, _manifest(model, code, written, inside), called=folder / MANIFEST)

    names = {f"segment_{number:04d}.nir": marker for number, marker in enumerate(markers)}
    writers = {folder / name: partial(put_segment, marker=marker, name=name) for name, marker in names.items()}
    write_together({**writers, folder / MANIFEST: put_manifest})
    return folder


def _manifest(
    model: SpikingModel, code: str, written: list[dict[str, Any]], inside: set[torch.fx.Node]
) -> dict[str, Any]:
    from .. import __version__

    return {
        "format": FORMAT,
        "format_version": VERSION,
        "transpike_version": __version__,
        "code": code,
        "segments": written,
        "outside": _outside(model, inside),
    }


def _segment(
    model: SpikingModel, draft: Draft, marker: torch.fx.Node, layers: dict[str, Layer], sites: dict[str, str]
) -> tuple[dict[str, Any], set[torch.fx.Node]]:
    """Fill `draft` with one segment; returns its entry in the manifest, and the operators it covers."""
    site = next(site for site in model.plan.sites if site.name == str(marker.args[1]))
    readers = [node for node in marker.users if node.name in layers]
    tensor = tuple(size for size in site.shape if size is not None)
    by_features = bool(readers) and str(site.kind) == "linear" and len(tensor) > 1
    shape = (*tensor[-1:], prod(tensor[:-1])) if by_features else tensor
    entry = Signal((draft.port("Input", "input", Signal((), shape)),), shape)
    signal = write_neuron(model, draft, marker, entry, sites)
    covered: set[torch.fx.Node] = {marker}
    outputs: dict[str, dict[str, Any]] = {}
    left = []
    for node in readers:
        layer = layers[node.name]
        try:
            made = write_layer(draft, folded_layer(model, layer, node), signal)
        except ModelError as error:
            left.append(f"{layer.name}: {error}")
            continue
        port = draft.port("Output", f"output:{layer.name}", made)
        outputs[port] = {"layer": layer.name, "op": layer.op, "shape": list(made.shape)}
        norm = foldable(node)
        covered |= {node} if norm is None else {node, norm}
    others = [node for node in marker.users if node not in covered]
    if others or not outputs:
        outputs[draft.port("Output", "spikes", signal)] = {"layer": None, "op": None, "shape": list(shape)}
    turned = "[features, others]: the site's tensor without the batch, its last axis first, the rest flattened"
    return {
        "site": site.name,
        "kind": str(site.kind),
        "module": module_path(marker),
        "site_shape": list(site.shape),
        "input_shape": list(shape),
        "layout": turned if by_features else "the site's tensor without the batch",
        "outputs": outputs,
        "read_outside": [f"{op_name(node)} in {module_path(node) or 'the model'}" for node in others],
        "not_written": left,
    }, covered


def _outside(model: SpikingModel, inside: set[torch.fx.Node]) -> list[dict[str, str]]:
    words = treatments(model)
    return [
        {"node": node.name, "op": op_name(node), "module": module_path(node), "treatment": words[node.name]}
        for node in model.program.module.graph.nodes
        if node.op == "call_function" and node not in inside and words[node.name] != "constant"
    ]
