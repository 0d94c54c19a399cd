"""Writing files so that they are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file in the same folder, then put it in place.

    Raises ConfigError when the disk is full, or the folder cannot be written; what was at `path` before is then intact.
    """
    write_together({path: write})
    return path


def write_together(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Let every writer, in order, fill a temporary file beside its path; only when all are whole, put them in place.

    Links are followed. Raises ConfigError when the disk is full, a folder cannot be written, or a path is no regular
    file; what was there before is then intact.
    """
    temporaries: dict[Path, Path] = {}
    path = Path()
    try:
        for path, write in writers.items():
            path = replaceable(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
            os.close(handle)
            temporaries[path] = Path(name)
            write(temporaries[path])
            with open(temporaries[path], "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporaries[path], 0o666 & ~_umask())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def replaceable(path: Path) -> Path:
    """Where a file that is written at `path` comes to lie: links are followed. Raises OSError for what is there and is
    no regular file."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():  # replacing a device would take it from everybody
        raise OSError(errno.EINVAL, "It is no regular file")
    return Path(os.path.realpath(path))


def write_json(path: Path, data: Any) -> Path:
    """One JSON object, indented, with a newline at its end. Raises ConfigError for what JSON cannot hold, as NaN."""
    return write_atomically(path, lambda temporary: put_json(temporary, data, called=path))


def put_json(temporary: Path, data: Any, *, called: Path) -> None:
    """What `write_json` puts into its temporary file; errors speak of the file it will be `called`.

    A file name may hold bytes that are not UTF-8, as lone surrogates, which JSON text cannot hold: they are spelled.
    """
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{called} cannot hold a value that is not JSON: {error}; nothing was written") from error
    temporary.write_text(re.sub("[\ud800-\udfff]", lambda one: rf"\\u{ord(one[0]):x}", text), encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json_file(path: str | Path) -> Any:
    """A JSON file. Raises ConfigError when it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
