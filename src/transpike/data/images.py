"""Encoded images with names, wherever their bytes come from, and the labels their layout spells."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, final

from torch import Tensor

from transpike.data.preprocess import Preprocess, require_pil
from transpike.data.samples import content_digest
from transpike.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
SPLITS = frozenset({"train", "val", "validation", "test"})
_PREFIX = re.compile(r"(\d+)_")


@final
@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Image files by name; `read` gives the bytes of one."""

    name: str
    classes: tuple[str, ...] | None
    items: tuple[str, ...]
    labels: tuple[int | None, ...]
    read: Callable[[str], bytes]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, i: int) -> tuple[Tensor, int | None]:
        item = self.items[i]
        return self.preprocess(decode(self.read(item), item=item)), self.labels[i]

    def item_name(self, i: int) -> str:
        return self.items[i]

    def fingerprint(self) -> str:
        return self._digested[0]

    def digests(self) -> tuple[str, ...]:
        return self._digested[1]

    @cached_property
    def _digested(self) -> tuple[str, tuple[str, ...]]:
        """Of all and of each, for every file is read once."""
        digest, each = hashlib.sha256(), []
        for item in self.items:
            content = self.read(item)
            digest.update(f"{item}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            digest.update(content)
            each.append(content_digest([content]))
        return digest.hexdigest(), tuple(each)


def decode(content: bytes, *, item: str) -> Image:
    """Bytes -> PIL image, fully read.

    Raises: DataError when they are not a complete JPEG, PNG, BMP or WebP.
    """
    pil = require_pil()
    try:
        image = pil.open(io.BytesIO(content), formats=("JPEG", "PNG", "BMP", "WEBP"))
        image.load()
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ... on broken files
        unknown = isinstance(error, pil.UnidentifiedImageError)  # whose text has an address in memory
        why = "no JPEG, PNG, BMP or WebP" if unknown else str(error)
        raise DataError(f"{item} cannot be decoded as an image ({why}); replace or remove it") from error
    return image


def is_image(path: PurePosixPath) -> bool:
    """By extension; hidden files (editors' and macOS leftovers) are not images."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def name_items(stored: Iterable[str], *, split: str, where: str, strip_single: bool) -> dict[str, str]:
    """Item name -> stored path, sorted: without a leading folder that is a split or holds everything.

        class/file, file          as they are
        {train,val,test}/...      only those of `split`
        top/class/file            without top (top/file too, with strip_single)

    Raises: DataError when there is no image or no such split.
    """
    paths = {path: tuple(part for part in PurePosixPath(path).parts if part != ".") for path in stored}
    if not paths:
        raise DataError(f"{where} holds no image ({', '.join(sorted(EXTENSIONS))}); check the path")
    tops = {parts[0] for parts in paths.values()}
    depths = {len(parts) for parts in paths.values()}
    skip = 0
    if min(depths) > 1 and tops <= SPLITS:
        if split not in tops:
            raise DataError(f"{where} holds the splits {', '.join(sorted(tops))}, not {split!r}; choose one of them")
        paths = {path: parts for path, parts in paths.items() if parts[0] == split}
        skip = 1
    elif len(tops) == 1 and (depths == {3} or (depths == {2} and strip_single)):
        skip = 1
    # By parts, not by string: "a-b/x" sorts before "a/x" as a string, but class "a" comes before "a-b".
    ordered = sorted(paths.items(), key=lambda entry: entry[1])
    return {"/".join(parts[skip:]): path for path, parts in ordered}


def label_items(
    items: tuple[str, ...], *, labels: str, where: str
) -> tuple[tuple[str, ...] | None, tuple[int | None, ...]]:
    """(classes, label of each item): from the class folder, or from a class index in front of the file name.

    labels: "auto" (class folders; else NNN_ when every file has it; else none), "prefix", "none".
    Raises: DataError for a layout that says neither.
    """
    if labels not in {"auto", "prefix", "none"}:
        raise ConfigError(f"labels={labels!r} is unknown; use auto, prefix or none")
    if labels == "none":
        return None, (None,) * len(items)
    depths = {item.count("/") for item in items}
    if labels == "auto" and depths == {1}:
        classes = tuple(sorted({item.split("/")[0] for item in items}))
        index = {name: i for i, name in enumerate(classes)}
        return classes, tuple(index[item.split("/")[0]] for item in items)
    if labels == "auto" and depths != {0}:
        raise DataError(
            f"{where} mixes images at different depths or nests them deeper than class/file (for example {items[0]} "
            f"and {items[-1]}); give one folder per class, or a flat folder"
        )
    prefixes = [_PREFIX.match(item.rsplit("/", 1)[-1]) for item in items]
    if labels == "prefix" and None in prefixes:
        item = items[prefixes.index(None)]
        raise DataError(
            f"{item} in {where} does not begin with a class index such as 007_; rename it, or set labels=none"
        )
    if None in prefixes:
        return None, (None,) * len(items)
    return None, tuple(int(match[1]) for match in prefixes if match)
