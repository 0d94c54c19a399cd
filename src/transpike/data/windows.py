"""Samples -> batches by number: batch n holds the readable ones of samples n * size ... (n + 1) * size - 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import final

from transpike.data.loader import Batch, Fetched, collate, fetch, one_ahead
from transpike.data.samples import Samples
from transpike.errors import ConfigError, DataError


@final
@dataclass(frozen=True, eq=False)
class Window:
    """Batch `number`, or None where no sample of it can be read; failed: (item, error) of each that cannot."""

    number: int
    batch: Batch | None
    failed: tuple[tuple[str, str], ...]


def windows(
    samples: Samples, numbers: Iterable[int], *, batch_size: int, num_classes: int | None = None
) -> Iterator[Window]:
    """The batches of those numbers, which ascend; it ends at the first number behind the last sample.

    Raises: DataError and ConfigError as `loader`.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} must be at least 1; choose a positive number")
    if len(samples) == 0:
        raise DataError(f"{samples.name!r} holds no sample; give at least one")
    within = takewhile(lambda number: number * batch_size < len(samples), numbers)
    return one_ahead(_window(samples, number, batch_size, num_classes) for number in within)


def _window(samples: Samples, number: int, batch_size: int, num_classes: int | None) -> Window:
    group: list[Fetched] = []
    failed: list[tuple[str, str]] = []
    for i in range(number * batch_size, min((number + 1) * batch_size, len(samples))):
        found = fetch(samples, i, num_classes=num_classes)
        if isinstance(found, Fetched):
            group.append(found)
        else:
            failed.append((samples.item_name(i), str(found)))
    return Window(number, collate(group) if group else None, tuple(failed))
