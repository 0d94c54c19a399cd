"""Samples that are rows of arrays in memory, and the .npz files that hold them."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from transpike.data.preprocess import Preprocess, as_it_is
from transpike.data.samples import Inputs, Label, content_digest
from transpike.errors import DataError


@final
@dataclass(frozen=True, eq=False)
class Arrays:
    """Row i of x, through `read`, with row i of y; with `extra` arrays the inputs are a dict, where x is `x_name`."""

    name: str
    classes: tuple[str, ...] | None
    x: np.ndarray
    y: np.ndarray | None
    read: Callable[[np.ndarray], Tensor]
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    x_name: str = "x"

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, i: int) -> tuple[Inputs, Label]:
        x = self.read(self.x[i])
        inputs = {self.x_name: x} | {key: as_tensor(rows[i]) for key, rows in self.extra.items()} if self.extra else x
        if self.y is None:
            return inputs, None
        label = self.y[i]
        return inputs, label.item() if label.size == 1 else as_tensor(label)

    def item_name(self, i: int) -> str:
        return f"{self.name}[{i}]"

    def fingerprint(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        arrays = {"x": self.x, **({} if self.y is None else {"y": self.y}), **self.extra}
        for key, array in sorted(arrays.items()):
            digest.update(f"{key}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def digests(self) -> tuple[str, ...]:
        return self._by_row

    @cached_property
    def _by_row(self) -> tuple[str, ...]:
        arrays = [self.x, *(rows for _, rows in sorted(self.extra.items()))]
        return tuple(content_digest(array[i].tobytes() for array in arrays) for i in range(len(self.x)))


def as_tensor(row: np.ndarray) -> Tensor:
    """A copy: floats and booleans keep their type, every integer becomes int64."""
    return torch.from_numpy(np.array(row, dtype=np.int64 if row.dtype.kind in "iu" else row.dtype.newbyteorder("=")))


def open_npz(path: Path, *, preprocess: Preprocess | None) -> Arrays:
    """x [N, ...] (uint8 images [N, H, W(, C)] go through `preprocess`), y [N], [N, 1] or [N, S]; others: named inputs.

    Raises: DataError when the file is broken, x is missing, or lengths and types do not fit.
    """
    arrays = _load(path)
    if "x" not in arrays:
        raise DataError(f"{path} has no array x (it has {', '.join(sorted(arrays)) or 'none'}); save the inputs as x")
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"array {key} of {path} is {array.dtype}, not numbers; save integers or floats")
        if array.ndim == 0 or len(array) != arrays["x"].shape[0]:
            raise DataError(
                f"array {key} of {path} has shape {list(array.shape)} but x has {list(arrays['x'].shape)}; "
                "the first dimension of every array must be the same number of samples"
            )
    x, y = arrays.pop("x"), arrays.pop("y", None)
    if len(x) == 0:
        raise DataError(f"{path} holds no sample (x has shape {list(x.shape)}); save at least one")
    if y is not None and y.dtype.kind not in "iu":
        raise DataError(f"y of {path} is {y.dtype}; labels must be integers")
    x_name = "input_ids" if x.dtype.kind in "iu" and not _holds_images(x) else "x"
    if x_name in arrays:
        raise DataError(f"{path} has both x and {x_name}, which name the same input; keep one")
    return Arrays(path.name, None, x, y, _reader(x, preprocess, path=path), arrays, x_name)


def _holds_images(x: np.ndarray) -> bool:
    return x.dtype == np.uint8 and x.ndim in {3, 4}


def _reader(x: np.ndarray, preprocess: Preprocess | None, *, path: Path) -> Callable[[np.ndarray], Tensor]:
    if not _holds_images(x):
        return as_tensor
    channels = x.shape[3] if x.ndim == 4 else 1
    preprocess = preprocess or as_it_is(channels)
    if channels not in {1, 3, 4, preprocess.channels} or (x.ndim == 4 and channels > 4 and x.shape[1] in {1, 3}):
        raise DataError(f"x of {path} has shape {list(x.shape)}; uint8 images must be [N, H, W] or [N, H, W, C]")
    return preprocess


def _load(path: Path) -> dict[str, np.ndarray]:
    if path.is_file() and not zipfile.is_zipfile(path):  # numpy would speak of pickles
        raise DataError(f"{path} is not a complete .npz archive; save it again with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a complete .npz of plain arrays ({reason}); save it again") from error
