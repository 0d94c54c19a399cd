"""Results by batch, on disk as they come: a run that was killed continues where it stopped.

A journal is a text file of lines {"sha256": ..., "entry": ...}, where the checksum is of the entry's canonical JSON.
The first entry says which run it is, and what its first session found; entry n + 1 is what batch n gave. A line is on
disk before the next batch begins, and a last line that was cut off is as if it had never been written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from .codecs.frame_file import frames_digest
from .errors import ConfigError
from .products import refusal
from .zoo import digest

if TYPE_CHECKING:
    from ._model import SpikingModel

FORMAT = "transpike-journal"
FORMAT_VERSION = 1
NAMED = 3  # differences that a message names
START = b'{"sha256": "'


class Journal:
    """An open journal: `entries` are those it had, one per batch in order; `found` what its first session found."""

    def __init__(self, path: Path, file: BinaryIO, entries: list[Any], found: Mapping[str, Any]) -> None:
        self.path = path
        self.file = file
        self.entries = entries
        self.found = found

    def append(self, entry: Any) -> None:
        """Write one more entry and wait until it is on disk. Raises ConfigError when the disk is full."""
        try:
            self.file.write(_line(entry))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # which would flush once more
                self.file.close()
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror or error}; the batches before are kept, so the same "
                "command continues from there"
            ) from error


@contextlib.contextmanager
def open_journal(path: Path, run: Mapping[str, Any], found: Mapping[str, Any] | None = None) -> Iterator[Journal]:
    """The journal at `path` of the run that `run` (JSON values) describes; a new one where there is no file.

    `found` (JSON values) is what only this session would find; later ones keep to what the first has found.
    Raises: ConfigError when the file is no journal, is damaged before its last line, belongs to another run (naming
    what differs), is in use, or cannot be written.
    """
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "run": _plain(run)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "rb+" if path.exists() else "xb+")  # noqa: SIM115 (closed below, by the caller's leaving)
    except OSError as error:
        raise ConfigError(f"cannot write the journal {path}: {error.strerror or error}") from error
    with file:
        _lock(file, path)
        entries, end = _read(file.read(), path)
        found = (entries[0].pop("found", None) if entries else None) or _plain(found or {})
        if entries and entries[0] != header:
            raise ConfigError(
                f"journal {path} belongs to another run: {_difference(entries[0], header)}; repeat that run's command, "
                "or name another file"
            )
        file.seek(end)
        file.truncate()
        journal = Journal(path, file, entries[1:], found)
        if not entries:
            journal.append({**header, "found": found})
        yield journal


def identity(model: SpikingModel, steps: int, mode: str) -> dict[str, Any]:
    """All that determines the numbers a model gives on a batch."""
    from . import __version__

    device = model.device
    cuda, plain = device.type == "cuda", model.kernel.startswith("eager") or refusal(device)
    return {
        "weights": digest(model.weights()),
        "graph": _sha256(str(model.whole.module.graph).encode()),
        "recipe": model.recipe.to_json(),
        "thresholds": {name: threshold.to_json() for name, threshold in model.thresholds.items()},
        "frames": frames_digest(model.calibration.frames),
        "steps": steps,
        "mode": mode,
        "max_memory": model.max_memory,
        "precision": model.precision,
        "products": "plain" if plain else f"in parts where {model.kernel}",
        "dtype": sorted({str(p.dtype).removeprefix("torch.") for p in model.whole.module.parameters()}),
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "threads": None if cuda else torch.get_num_threads(),
        "float32_precision": torch.get_float32_matmul_precision(),
        "versions": {"transpike": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }


def _line(entry: Any) -> bytes:
    return json.dumps({"sha256": _sha256(_canonical(entry)), "entry": entry}).encode() + b"\n"


def _canonical(entry: Any) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _plain(value: Mapping[str, Any]) -> Any:
    """As it reads back."""
    return json.loads(json.dumps(value))


def _read(content: bytes, path: Path) -> tuple[list[Any], int]:
    """The entries, and where the last whole line ends."""
    *lines, _ = content.split(b"\n")
    if not lines and (content.startswith(START) or START.startswith(content)):
        return [], 0  # nothing yet, or killed within the first line
    entries: list[Any] = []
    end = 0
    for number, line in enumerate(lines or [content]):
        entry = _entry(line)
        if number == 0 and (entry is None or entry.get("format") != FORMAT):
            raise ConfigError(f"{path} is not a journal of transpike; name another file, this one is left as it is")
        if entry is None:
            if any(_entry(later) is not None for later in lines[number + 1 :]):
                raise ConfigError(f"line {number + 1} of journal {path} is damaged; remove the file to start anew")
            break
        entries.append(entry)
        end += len(line) + 1
    return entries, end


def _entry(line: bytes) -> Any:
    """What a line holds, or None where it is not whole."""
    try:
        found = json.loads(line)
        entry = found["entry"]
        return entry if isinstance(entry, dict) and found["sha256"] == _sha256(_canonical(entry)) else None
    except (ValueError, KeyError, TypeError):
        return None


def _lock(file: BinaryIO, path: Path) -> None:
    """One run at a time, where the system has locks; the system takes them back from a run that is killed."""
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return
    except BlockingIOError as error:
        raise ConfigError(f"journal {path} is in use by another run; wait for it, or name another file") from error
    except OSError:  # a file system without locks
        return


def _difference(there: Any, here: Any) -> str:
    """The first few values that are not the same: "steps (4 there, 8 here)"."""
    one, other = dict(_flat(there, "")), dict(_flat(here, ""))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    words = [_spelled(name.removeprefix("run."), one.get(name), other.get(name)) for name in names[:NAMED]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(words) + more


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{name}.{key}" if name else key)


def _spelled(name: str, there: Any, here: Any) -> str:
    pair = tuple("none" if value is None else str(value) for value in (there, here))
    if max(map(len, pair)) > 40:  # a checksum says nothing to a reader
        return f"other {name}"
    return f"{name.replace('_', ' ')} ({pair[0]} there, {pair[1]} here)"
