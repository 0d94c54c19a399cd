"""What was evaluated already, as JSON lines: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FIRST = '{"key": "'  # how every line begins


class Journal:
    """Records by key, in memory and, with a path, in a file that grows by one line per record.

    A last line without its end was being written when the run was stopped: it is dropped. Records of other runs stay
    and are not looked at.
    Raises: ConfigError naming the file and line for a file that is no journal, or cannot be read or written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        if self.path is not None:
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            text = path.read_bytes().decode("utf-8") if path.exists() else ""
            *lines, torn = text.split("\n")
            for number, line in enumerate(lines, start=1):
                record = _record(line)
                if record is None:
                    raise ConfigError(f"{path}, line {number}, is no line of a journal; name another file")
                self.records[record["key"]] = record
            if torn:
                if not (torn.startswith(FIRST) or FIRST.startswith(torn)):
                    raise ConfigError(f"{path}, line {len(lines) + 1}, is no line of a journal; name another file")
                os.truncate(path, len(text.encode()) - len(torn.encode()))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is no journal: it is not UTF-8; name another file") from error
        except OSError as error:
            raise ConfigError(f"cannot read the journal {path}: {error.strerror or error}") from error

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record, and append its line."""
        whole = {"key": key, **record}
        self.records[key] = whole
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(whole, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(f"cannot write the journal {self.path}: {error.strerror or error}") from error


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("key"), str) else None
