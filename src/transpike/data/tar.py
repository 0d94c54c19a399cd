"""A .tar of images in the layouts of a folder, read in place: members are indexed once, nothing is extracted."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from transpike.data.images import EncodedImages, is_image, label_items, name_items
from transpike.data.preprocess import Preprocess, as_it_is
from transpike.errors import DataError


def open_tar(path: Path, *, preprocess: Preprocess | None, labels: str, split: str) -> EncodedImages:
    """Raises: DataError when the archive is broken, compressed, or holds no image."""
    where = f"archive {path}"
    spans = _index(path)
    stored = name_items(spans, split=split, where=where, strip_single=True)
    items = tuple(stored)
    classes, numbers = label_items(items, labels=labels, where=where)

    def read(item: str) -> bytes:
        offset, size = spans[stored[item]]
        # A handle per read, so that two loaders may read one archive at the same time.
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise DataError(f"{item} in {where} ends early; the archive is truncated, fetch it again")
        return content

    return EncodedImages(path.name, classes, items, numbers, read, preprocess or as_it_is(3))


def _index(path: Path) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, size) of its bytes in the file."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            return {
                member.name: (member.offset_data, member.size)
                for member in archive
                if member.isreg() and not member.issparse() and is_image(PurePosixPath(member.name))
            }
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not a complete uncompressed .tar ({error}); fetch or unpack it again") from error
