"""Samples -> batches: checked, in order, one batch ahead; what cannot be read is told and skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from transpike.data.samples import Inputs, Label, Samples
from transpike.errors import ConfigError, DataError, MissingExtra

Read = TypeVar("Read")

IGNORED = -100  # PyTorch's ignore_index: a position without a label


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """inputs [B, ...] or named such tensors; labels [B] or [B, S], or None; indices of the samples they came from."""

    inputs: Inputs
    labels: Tensor | None
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


@final
@dataclass(frozen=True, eq=False)
class Fetched:
    index: int
    item: str
    inputs: dict[str, Tensor]
    label: Tensor | None


def loader(
    samples: Samples,
    *,
    batch_size: int,
    on_failure: Callable[[str, Exception], None] | None = None,
    num_classes: int | None = None,
) -> Iterator[Batch]:
    """Every readable sample exactly once, in order, in batches of `batch_size` (the last may be smaller).

    on_failure: told (item name, exception) of each sample that cannot be read and is skipped; by default a warning in
    the log.  It is called from the thread that reads ahead.
    Raises: DataError, while iterating, for a label outside 0..num_classes-1 (-100 excepted), NaN, differing shapes in
    a batch, or when no sample can be read.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} must be at least 1; choose a positive number")
    if len(samples) == 0:
        raise DataError(f"{samples.name!r} holds no sample; give at least one")
    return one_ahead(_batches(samples, batch_size, on_failure or _log_failure, num_classes))


def one_ahead(items: Iterator[Read]) -> Iterator[Read]:
    """The same items, none of which is None; the next one is made in another thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="transpike-loader") as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def _batches(
    samples: Samples, batch_size: int, on_failure: Callable[[str, Exception], None], num_classes: int | None
) -> Iterator[Batch]:
    waiting: list[Fetched] = []
    first_failure: Exception | None = None
    num_read = 0
    for i in range(len(samples)):
        found = fetch(samples, i, num_classes=num_classes)
        if not isinstance(found, Fetched):
            first_failure = first_failure or found
            on_failure(samples.item_name(i), found)
            continue
        num_read += 1
        waiting.append(found)
        if len(waiting) == batch_size:
            yield collate(waiting)
            waiting = []
    if waiting:
        yield collate(waiting)
    if num_read == 0:
        raise DataError(
            f"none of the {len(samples)} samples of {samples.name!r} can be read; the first failure: {first_failure}"
        ) from first_failure


def fetch(samples: Samples, i: int, *, num_classes: int | None) -> Fetched | Exception:
    """Sample i, or why it cannot be read. Raises DataError for one that can be read and is wrong."""
    item = samples.item_name(i)
    try:
        inputs, label = samples.fetch(i)
    except (MissingExtra, ConfigError, MemoryError):
        raise  # says something about the installation, the settings or the machine, not about this sample
    except Exception as error:  # whatever a decoder raises
        return error
    return _checked(i, item, inputs, label, num_classes=num_classes)


def _checked(index: int, item: str, inputs: Inputs, label: Label, *, num_classes: int | None) -> Fetched:
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    for key, value in named.items():
        if value.is_floating_point() and bool(value.isnan().any()):
            raise DataError(f"{item}: {_called(key)} holds NaN; repair or remove the sample")
    if label is None:
        return Fetched(index, item, named, None)
    numbers = torch.as_tensor(label, dtype=torch.int64)
    if num_classes is not None:
        outside = numbers[(numbers != IGNORED) & ((numbers < 0) | (numbers >= num_classes))]
        if outside.numel():
            raise DataError(
                f"{item} has label {int(outside.flatten()[0])} but the model has {num_classes} classes "
                f"(0..{num_classes - 1}); check the labels, or use the model they belong to"
            )
    return Fetched(index, item, named, numbers)


def collate(group: Sequence[Fetched]) -> Batch:
    first = group[0]
    for other in group[1:]:
        if other.inputs.keys() != first.inputs.keys():
            raise DataError(
                f"{first.item} has the inputs {', '.join(first.inputs)} but {other.item} has "
                f"{', '.join(other.inputs)}; give every sample the same"
            )
        for key, value in first.inputs.items():
            _same_shape(first.item, value, other.item, other.inputs[key], what=_called(key))
        if (first.label is None) != (other.label is None):
            raise DataError(f"only one of {first.item} and {other.item} has a label; label all samples or none")
        if first.label is not None and other.label is not None:
            _same_shape(first.item, first.label, other.item, other.label, what="label")
    inputs = {key: torch.stack([one.inputs[key] for one in group]) for key in first.inputs}
    labels = [one.label for one in group if one.label is not None]
    return Batch(
        inputs.get("", inputs),
        torch.stack(labels) if labels else None,
        tuple(one.index for one in group),
    )


def _same_shape(item: str, one: Tensor, other_item: str, other: Tensor, *, what: str) -> None:
    if one.shape != other.shape:
        raise DataError(
            f"{what} of {item} has shape {list(one.shape)} but that of {other_item} has {list(other.shape)}; "
            "make them equal (for images: give a preprocessing with an input_size)"
        )


def _called(key: str) -> str:
    return f"input {key!r}" if key else "input"


def _log_failure(item: str, error: Exception) -> None:
    logging.getLogger("transpike.data").warning("skipped %s: %s", item, error)
