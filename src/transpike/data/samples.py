"""The one interface every source of data answers to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

Inputs = Tensor | dict[str, Tensor]
Label = int | Tensor | None


@runtime_checkable
class Samples(Protocol):
    """A finite, ordered, named collection of (inputs, label); the batch dimension is not there yet."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def fetch(self, i: int) -> tuple[Inputs, Label]:
        """Sample i: a tensor or named tensors, and an int, a LongTensor (-100 = ignored) or None."""
        ...

    def item_name(self, i: int) -> str:
        """What to call sample i in a message."""
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) over names, sizes, content bytes and labels: equal for equal data, wherever it is stored."""
        ...

    def digests(self) -> tuple[str, ...]:
        """By sample, `content_digest` of its input as it is stored: equal for the same input in another collection,
        under another name or label."""
        ...


def content_digest(parts: Iterable[bytes]) -> str:
    """The first 64 bits (hex) of sha256 over byte strings and their lengths."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}\0".encode())
        found.update(part)
    return found.hexdigest()[:16]
