"""CIFAR-10 and CIFAR-100 as their authors ship them: the `python` and the `binary` layout.

Source: https://www.cs.toronto.edu/~kriz/cifar.html; a binary record is 1 label byte, then 3 x 32 x 32 pixel bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transpike.data.arrays import Arrays
from transpike.data.preprocess import Preprocess, as_it_is
from transpike.data.safe_pickle import read_inert
from transpike.errors import DataError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    folder: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    label_key: str = ""
    names_key: str = ""


_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS = (
    _Layout("cifar-10-batches-py", {"train": _TRAIN, "test": ("test_batch",)}, "batches.meta", "labels", "label_names"),
    _Layout("cifar-100-python", {"train": ("train",), "test": ("test",)}, "meta", "fine_labels", "fine_label_names"),
    _Layout(
        "cifar-10-batches-bin",
        {"train": tuple(f"{name}.bin" for name in _TRAIN), "test": ("test_batch.bin",)},
        "batches.meta.txt",
    ),
)


def find_cifar(path: Path) -> Path | None:
    """The CIFAR folder that `path` is or contains, or None.

    Raises: DataError when it contains several.
    """
    if _layout_of(path) is not None:
        return path
    inside = [path / layout.folder for layout in _LAYOUTS if _layout_of(path / layout.folder) is not None]
    if len(inside) > 1:
        raise DataError(f"{path} holds {' and '.join(p.name for p in inside)}; name one of them")
    return inside[0] if inside else None


def open_cifar(path: Path, *, preprocess: Preprocess | None, split: str) -> Arrays:
    """Raises: DataError when the split is unknown or a file is missing, broken or not what it says."""
    layout = _layout_of(path)
    if layout is None:
        raise DataError(f"{path} is not a CIFAR folder; name the unpacked {_LAYOUTS[0].folder} folder")
    if split not in layout.splits:
        raise DataError(f"CIFAR has the splits train and test, not {split!r}; choose one of them")
    files = [path / name for name in layout.splits[split]]
    for file in (*files, path / layout.meta):
        if not file.is_file():
            raise DataError(f"{file} is missing from the CIFAR folder; fetch the data set again")
    batches = [_read_python(file, layout) if layout.label_key else _read_binary(file) for file in files]
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([labels for _, labels in batches])
    name = f"{layout.folder}/{split}"
    return Arrays(name, _classes(path / layout.meta, layout), pixels, labels, preprocess or as_it_is(3))


def _layout_of(path: Path) -> _Layout | None:
    for layout in _LAYOUTS:
        named = path.name == layout.folder or (path / layout.meta).is_file()
        if named and any((path / files[0]).is_file() for files in layout.splits.values()):
            return layout
    return None


def _read_python(file: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    batch = read_inert(file)
    pixels, labels = batch.get("data"), batch.get(layout.label_key)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
        raise DataError(f"{file} lacks data or {layout.label_key}; fetch the data set again")
    if pixels.shape != (len(labels), _PIXELS) or not all(isinstance(label, int) for label in labels):
        raise DataError(
            f"{file} holds pixels of shape {list(pixels.shape)} for {len(labels)} labels, not [N, {_PIXELS}] and N "
            "integers; fetch the data set again"
        )
    return pixels, np.array(labels, dtype=np.int64)


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.fromfile(file, dtype=np.uint8)
    if content.size == 0 or content.size % (1 + _PIXELS):
        raise DataError(f"{file} has {content.size} bytes, not a multiple of {1 + _PIXELS}; fetch the data set again")
    records = content.reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _classes(meta: Path, layout: _Layout) -> tuple[str, ...]:
    if not layout.label_key:
        return tuple(meta.read_text(encoding="utf-8").split())
    names = read_inert(meta).get(layout.names_key)
    if not isinstance(names, list):
        raise DataError(f"{meta} lacks {layout.names_key}; fetch the data set again")
    return tuple(str(name) for name in names)
