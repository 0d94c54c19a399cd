"""Spike trains as a stream of bytes, specified byte for byte in docs/hardware.md.

One record per step and site, a marker behind the last record of a step, a CRC behind each: what was written before an
interruption stays readable up to the last whole step.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.fx

from .._arguments import require_count
from .._execute import run_body, run_prefix
from ..errors import ConfigError, DataError
from ..files import replaceable
from ..neurons import advance
from .event_file import CRC, EVENT, HEAD, MAGIC, RECORD, SITE, STEP, VERSION, Events, read_events

if TYPE_CHECKING:
    from .._model import SpikingModel


def partial_path(path: Path) -> Path:
    """Where an unfinished dump of `path` is: beside the file itself, where `path` is a link to it."""
    path = path.resolve() if path.is_symlink() else path
    return path.with_name(path.name + ".partial")


def write_events(
    model: SpikingModel,
    inputs: Any,
    path: str | Path,
    *,
    steps: int,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Simulate `steps` time-steps on one batch, step after step, and write every spike.

    The file grows as PATH.partial and gets its name when it is whole; interrupted, PATH.partial stays and is readable.
    Memory does not grow with `steps`. Raises: ConfigError for steps < 1 or a path that cannot be written; DataError for
    inputs of another shape, or not finite.
    """
    require_count("steps", steps)
    path = Path(path)
    try:
        replaceable(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file") from error
    shapes: dict[str, tuple[int, ...]] = {}
    stream = _steps(model, inputs, steps, shapes)
    first = next(stream)  # before anything is written: bad inputs leave no file
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(_header(model, inputs, steps, shapes))
            for t, chunks in enumerate(chain([first], stream), 1):
                file.writelines(chunks)
                file.flush()
                if progress is not None:
                    progress(t)
            os.fsync(file.fileno())
        os.replace(partial, replaceable(path))
    except OSError as error:
        left = f"; the steps before are in {partial}" if partial.exists() else ""
        raise ConfigError(f"cannot write {path}: {error.strerror or error}{left}") from error
    return path


@torch.no_grad()
def _steps(model: SpikingModel, inputs: Any, steps: int, shapes: dict[str, tuple[int, ...]]) -> Iterator[list[bytes]]:
    """The bytes of each step; fills `shapes`, the tensor of each site with the batch in it, in the first."""
    numbers = {site.name: i for i, site in enumerate(model.plan.sites)}
    crossing = run_prefix(model.program, model.prepare(inputs))
    state: dict[str, torch.Tensor] = {}
    for t in range(1, steps + 1):
        chunks: list[bytes] = []
        total = 0

        def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            nonlocal total
            site = str(marker.args[1])
            if value.numel() and not bool(torch.isfinite(value).all()):
                raise DataError(f"site {site} received NaN or infinity; check the inputs")
            neuron, threshold = model.neurons[site], model.thresholds[site]
            state[site], out, trains = advance(neuron, state.get(site), t, value, threshold)  # noqa: B023
            shapes[site] = tuple(value.shape)
            amplitudes = neuron.amplitudes(threshold)
            events = np.concatenate([to_events(emitted, amplitudes, site) for emitted in trains])
            chunks.extend(_record(SITE, t, numbers[site], len(events), events.tobytes()))  # noqa: B023
            total += len(events)
            return out

        run_body(model.program, crossing, fire)
        chunks.extend(_record(STEP, t, len(numbers), total, b""))
        yield chunks


def to_events(emitted: torch.Tensor, amplitudes: tuple[float, ...], site: str) -> np.ndarray:
    """Emitted amplitudes [...] -> one event per spike: the element's index in C order, and which amplitude it has."""
    flat = emitted.flatten()
    if flat.numel() > 2**32:
        raise ConfigError(f"site {site} has {flat.numel():,} neurons in this batch, more than 2^32; use a smaller one")
    fired = flat.nonzero().flatten()
    worth = torch.tensor(amplitudes, dtype=flat.dtype, device=flat.device)
    matches = flat[fired].unsqueeze(1) == worth
    if not bool(matches.any(1).all()):
        raise ConfigError(f"site {site} emitted a value that is none of its levels; its neuron breaks its promise")
    events = np.empty(len(fired), EVENT)
    events["neuron"] = fired.cpu().numpy()
    events["channel"] = matches.to(torch.uint8).argmax(1).cpu().numpy() if amplitudes else 0
    return events


def _record(tag: bytes, step: int, site: int, count: int, payload: bytes) -> tuple[bytes, bytes, bytes]:
    head = RECORD.pack(tag, step, site, count, len(payload))
    return head, payload, CRC.pack(zlib.crc32(payload, zlib.crc32(head)))


def _header(model: SpikingModel, inputs: Any, steps: int, shapes: dict[str, tuple[int, ...]]) -> bytes:
    from .. import __version__

    codes = {neuron.code for neuron in model.neurons.values()}
    sites = [
        {
            "name": site.name,
            "kind": str(site.kind),
            "shape": list(shapes[site.name]),
            "batch_axis": site.batch_axis,
            "amplitudes": list(model.neurons[site.name].amplitudes(model.thresholds[site.name])),
        }
        for site in model.plan.sites
    ]
    header = {
        "format": "transpike-events",
        "transpike_version": __version__,
        "recipe": model.recipe.name,
        "code": codes.pop() if len(codes) == 1 else None,
        "steps": steps,
        "samples": model.samples_in(model.prepare(inputs)),
        "sites": sites,
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode("utf-8")
    whole = HEAD.pack(MAGIC, VERSION, len(text)) + text
    return whole + CRC.pack(zlib.crc32(whole))


__all__ = ["Events", "partial_path", "read_events", "to_events", "write_events"]
