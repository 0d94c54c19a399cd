"""The one interface every source of data answers to."""

from __future__ import annotations

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
        """sha256 (hex) over names, sizes and content bytes: equal for equal data, wherever it is stored."""
        ...
