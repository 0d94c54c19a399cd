"""The bytes of an event file, and how they are read; specified in docs/hardware.md."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ConfigError

MAGIC, VERSION = b"TPKEVENT", 1
HEAD = struct.Struct("<8sII")  # magic, version, bytes of the JSON header
RECORD = struct.Struct("<4sIIQQ")  # tag, step, site (a marker: records of the step), events, bytes of payload
CRC = struct.Struct("<I")
SITE, STEP = b"SITE", b"STEP"
EVENT = np.dtype([("neuron", "<u4"), ("channel", "u1")])  # packed: 5 bytes


@dataclass(frozen=True)
class Events:
    """An event file: `steps` whole steps of header["steps"]; `problem` says why there are not more ("": all there)."""

    path: Path
    header: dict[str, Any]
    places: tuple[dict[int, tuple[int, int]], ...]  # by step: site -> offset of its events, how many
    problem: str

    @property
    def steps(self) -> int:
        return len(self.places)

    @property
    def truncated(self) -> bool:
        return bool(self.problem)

    def step(self, t: int) -> dict[str, np.ndarray]:
        """Events of step t = 1..steps by site: fields `neuron` (uint32) and `channel` (uint8)."""
        if not 1 <= t <= self.steps:
            raise ConfigError(f"{self.path} has steps 1..{self.steps}, not {t}")
        with open(self.path, "rb") as file:
            return {self.header["sites"][i]["name"]: _events_at(file, *p) for i, p in self.places[t - 1].items()}

    def emitted(self, t: int) -> dict[str, np.ndarray]:
        """Emitted amplitudes of step t by site, float64 in the site's shape: the events replayed."""
        found = {}
        sites = {site["name"]: site for site in self.header["sites"]}
        for name, events in self.step(t).items():
            dense = np.zeros(int(np.prod(sites[name]["shape"])))
            worth = np.array(sites[name]["amplitudes"] or [0.0])[events["channel"]]
            np.add.at(dense, events["neuron"], worth)  # a neuron may fire several times in a step
            found[name] = dense.reshape(sites[name]["shape"])
        return found

    def counts(self) -> dict[str, np.ndarray]:
        """Spikes per step, int64 [steps] by site."""
        names = [site["name"] for site in self.header["sites"]]
        return {name: np.array([p[i][1] for p in self.places], np.int64) for i, name in enumerate(names)}


def _events_at(file: BinaryIO, offset: int, count: int) -> np.ndarray:
    file.seek(offset)
    return np.frombuffer(file.read(count * EVENT.itemsize), EVENT)


def read_events(path: str | Path) -> Events:
    """Check an event file record by record, and index its whole steps.

    A file that stops early, or is damaged further on, gives the whole steps before that; `truncated` and `problem` say
    so. Raises ConfigError when not even the header is sound.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            header = _read_header(file, path)
            places, problem = _scan(file, header)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    return Events(path, header, tuple(places), problem)


def _read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        raise ConfigError(f"{path} is not an event file of transpike; write one with transpike export events")
    _, version, length = HEAD.unpack(head)
    if version != VERSION:
        raise ConfigError(f"{path} is an event file of version {version}, this transpike reads {VERSION}")
    text, crc = file.read(min(length, os.fstat(file.fileno()).st_size)), file.read(CRC.size)
    if len(crc) < CRC.size or CRC.unpack(crc)[0] != zlib.crc32(head + text):
        raise ConfigError(f"{path} has a damaged header; write it again")
    return json.loads(text)


def _scan(file: BinaryIO, header: dict[str, Any]) -> tuple[list[dict[int, tuple[int, int]]], str]:
    places: list[dict[int, tuple[int, int]]] = []
    current: dict[int, tuple[int, int]] = {}
    size = os.fstat(file.fileno()).st_size
    while len(places) < header["steps"]:
        where = f"in step {len(places) + 1} of {header['steps']}"
        head = file.read(RECORD.size)
        if len(head) < RECORD.size:
            return places, f"ends {where}"
        tag, step, site, count, length = RECORD.unpack(head)
        offset = file.tell()
        if tag not in (SITE, STEP) or length != count * EVENT.itemsize * (tag == SITE):
            return places, f"is damaged {where}"
        if offset + length + CRC.size > size:
            return places, f"ends {where}"
        payload, crc = file.read(length), file.read(CRC.size)
        sound = CRC.unpack(crc)[0] == zlib.crc32(payload, zlib.crc32(head)) and step == len(places) + 1
        if sound and tag == SITE and site < len(header["sites"]) and site not in current:
            current[site] = (offset, count)
        elif sound and tag == STEP and site == len(current) == len(header["sites"]):
            places.append(current)
            current = {}
        else:
            return places, f"is damaged {where}"
    return places, ""
