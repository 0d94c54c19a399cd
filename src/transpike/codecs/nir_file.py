"""NIR files of ours: reading one, and what it says beside its graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, ModelError
from .nir_neuron import load_nir

if TYPE_CHECKING:
    import nir

    from .._model import SpikingModel


def read_nir(path: str | Path) -> nir.NIRGraph:
    """Raises ConfigError for a file that is missing or holds no NIR graph."""
    try:
        return load_nir().read(str(path))
    except (OSError, KeyError, ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"{path} is not a NIR file that can be read: {error}") from error


def facts(graph: nir.NIRGraph) -> dict[str, Any]:
    """What write_nir noted: code ("rate" or "sum"), dt, and the site behind each neuron's node."""
    text = graph.metadata.get("transpike")
    if text is None:
        raise ConfigError("this NIR graph was not written by transpike: it does not say which code its neurons use")
    return json.loads(text.decode() if isinstance(text, bytes) else str(text))


def code_of(model: SpikingModel) -> str:
    model.require_together("an export of its graph")
    codes = {neuron.code for neuron in model.neurons.values()}
    if several := [name for name, neuron in model.neurons.items() if neuron.pulses > 1]:
        raise ModelError(f"NIR cannot hold the neuron of site {several[0]}, which may fire several times in a step")
    if len(codes) != 1:
        raise ModelError(f"the neurons of one graph must share a code, not {', '.join(sorted(codes))}")
    return codes.pop()


def metadata(code: str, sites: dict[str, str]) -> dict[str, str]:
    from .. import __version__

    noted = {"transpike_version": __version__, "code": code, "dt": 1.0, "sites": sites}
    return {"transpike": json.dumps(noted, ensure_ascii=False)}


def model_dtype(model: SpikingModel) -> torch.dtype:
    """What the file's numbers are in: float64 for a float64 model, else float32, as the neurons' state."""
    dtype = next((p.dtype for p in model.program.module.parameters() if p.is_floating_point()), torch.float32)
    return torch.promote_types(dtype, torch.float32)
