"""A folder of images: one subfolder per class, or flat with the class index in front of each name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from transpike.data.images import EncodedImages, is_image, label_items, name_items
from transpike.data.preprocess import Preprocess, as_it_is
from transpike.errors import DataError

_MAX_DEPTH = 3  # split/class/file; one more is looked at so that deeper nesting is told, not missed


def open_folder(path: Path, *, preprocess: Preprocess | None, labels: str, split: str) -> EncodedImages:
    """Raises: DataError when there is no image, a class folder is empty, or the layout is unclear."""
    where = f"folder {path}"
    stored = name_items(_walk(path), split=split, where=where, strip_single=False)
    items = tuple(stored)
    classes, numbers = label_items(items, labels=labels, where=where)
    if classes is not None:
        _refuse_empty_classes((path / stored[items[0]]).parent.parent, classes)

    def read(item: str) -> bytes:
        return (path / stored[item]).read_bytes()

    return EncodedImages(path.resolve().name, classes, items, numbers, read, preprocess or as_it_is(3))


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root, followlinks=True):  # class folders are often links
        here = Path(folder).relative_to(root)
        subfolders[:] = [] if len(here.parts) >= _MAX_DEPTH else [n for n in subfolders if not n.startswith(".")]
        for name in files:
            if is_image(PurePosixPath(name)):
                yield (here / name).as_posix()


def _refuse_empty_classes(base: Path, classes: tuple[str, ...]) -> None:
    # Leaving an empty class out would silently shift the index of every later one.
    for entry in sorted(base.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in classes:
            raise DataError(f"class folder {entry} holds no image; fill it or remove it, its index would be lost")
