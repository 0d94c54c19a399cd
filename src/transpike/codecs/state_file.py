"""A stopped run of the network in spikes as one safetensors file, specified in docs/format.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from .._place import op_name
from .._state import Batch, State, batch_of, checksum
from ..errors import ConfigError, DataError
from ..files import write_atomically
from ..zoo.source import reason
from .bundle import site_to_json
from .frame_file import frames_digest

if TYPE_CHECKING:
    from .._model import SpikingModel

FORMAT = "transpike-state"
FORMAT_VERSION = 1
TYPES: dict[str, type] = {"step": int, "network": dict, "inputs": dict, "sha256": str}  # what loading reads
AGAIN = "start the run again without it"


def save_state(model: SpikingModel, state: State, path: str | Path) -> Path:
    """Write the state that steps of `_literal.Literal` left, whole or not at all.

    Raises: ConfigError for a state before the first step, or a path that cannot be written; DataError for NaN.
    """
    path = Path(path)
    if state.t < 1 or state.batch is None:
        raise ConfigError("there is no state to save before the first step; run at least one")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _named(state)}
    _check_numbers(tensors, f"the state after step {state.t}")
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": state.t,
        "network": network_of(model),
        "inputs": {"shapes": state.batch.shapes, "sha256": state.batch.sha256},
        "sha256": checksum(sorted(tensors.items())),
    }

    def put(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata={FORMAT: json.dumps(header)})
        except safetensors.SafetensorError as error:  # a full disk arrives as this
            raise OSError(str(error)) from error

    return write_atomically(path, put)


def load_state(model: SpikingModel, path: str | Path, *, inputs: Any = None) -> State:
    """The state in a file, on the model's device, for `Literal.run(inputs, steps=..., state=...)`.

    Arguments: inputs -- the batch it must belong to; by default that is left to the run.
    Raises: ConfigError for a file that is missing, damaged, of another format or of another network; DataError for NaN
    and for other inputs.
    """
    path = Path(path)
    header, tensors = _read(path)
    own = network_of(model)
    different = [what for what in own if header["network"].get(what) != own[what]]
    if different:
        raise ConfigError(
            f"{path} is the state of another network: other {' and '.join(different)}; go on with the network it was "
            f"made with, or {AGAIN}"
        )
    if checksum(sorted(tensors.items())) != header["sha256"]:
        raise ConfigError(f"{path} is damaged: its tensors are not those that were written; {AGAIN}")
    _check_numbers(tensors, str(path))
    batch = Batch(header["inputs"].get("shapes"), header["inputs"].get("sha256"))
    try:
        state = _state(header["step"], {name: tensor.to(model.device) for name, tensor in tensors.items()}, batch)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: it has a tensor of no known name ({error}); {AGAIN}") from error
    if set(state.membranes) != set(model.neurons) or state.output is None:
        raise ConfigError(f"{path} is damaged: it lacks the output or the membranes of a site; {AGAIN}")
    if inputs is not None:
        state.check_batch(batch_of(model.prepare(inputs)))
    return state


def network_of(model: SpikingModel) -> dict[str, str]:
    """Checksums of all that decides what a step does, by what each of them is of."""
    module = model.program.module
    weights = dict([*module.named_parameters(), *module.named_buffers()])
    return {
        "recipe": _sha256(model.recipe.to_json()),
        "sites": _sha256([site_to_json(site) for site in model.plan.sites]),
        "thresholds": _sha256({name: threshold.to_json() for name, threshold in model.thresholds.items()}),
        "frames": frames_digest(model.calibration.frames),
        "operators": _sha256([[node.name, op_name(node)] for node in model.program.body]),
        "weights": checksum(sorted(weights.items())),
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _named(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((f"membrane/{site}", tensor) for site, tensor in state.membranes.items())
    for node, sums in state.sums.items():
        yield from ((f"sum/{node}/{i}", tensor) for i, tensor in enumerate(sums))
    yield from ((f"product/{node}", tensor) for node, tensor in state.products.items())
    yield from ((f"emitted/{node}", tensor) for node, tensor in state.emitted.items())
    if state.output is not None:
        yield "output", state.output


def _state(step: int, tensors: Mapping[str, torch.Tensor], batch: Batch) -> State:
    state, sums = State(step, batch=batch), {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "sum":
            node, _, place = rest.rpartition("/")
            sums.setdefault(node, {})[int(place)] = tensor
        elif kind == "output":
            state.output = tensor
        else:
            {"membrane": state.membranes, "product": state.products, "emitted": state.emitted}[kind][rest] = tensor
    state.sums = {node: tuple(found[i] for i in sorted(found)) for node, found in sums.items()}
    return state


def _check_numbers(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Sums may hold -Inf, as masks do; membranes may not."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if bool(tensor.isnan().any()) or (name.startswith("membrane/") and not bool(tensor.isfinite().all())):
            raise DataError(f"{where} holds NaN or infinity in {name}; start the run again and check its inputs")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise ConfigError(f"there is no state file {path}; save_state writes one")
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = None if text is None else json.loads(text)
    except (OSError, RecursionError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} is not a whole state file ({reason(error)}); {AGAIN}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ConfigError(f"{path} is not the state of a run (format {FORMAT}); name a file that save_state wrote")
    if header.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format version {header.get('format_version')!r:.40}, this transpike reads {FORMAT_VERSION}; "
            "update transpike"
        )
    for key, kind in TYPES.items():
        if type(header.get(key)) is not kind:  # exactly: True is an int, too
            raise ConfigError(f"{path} is damaged: {key} cannot be {header.get(key)!r:.40}; {AGAIN}")
    if header["step"] < 1:
        raise ConfigError(f"{path} is damaged: step cannot be {header['step']}; {AGAIN}")
    return header, tensors
