"""What a user names -> Samples."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from transpike.data.arrays import open_npz
from transpike.data.cifar import find_cifar, open_cifar
from transpike.data.digits import open_digits
from transpike.data.folder import open_folder
from transpike.data.hub import open_hub
from transpike.data.preprocess import Preprocess
from transpike.data.samples import Samples
from transpike.data.tar import open_tar
from transpike.errors import DataError

KNOWN = "a folder of images, a .tar of images, an .npz with x and y, a CIFAR folder, datasets:NAME[:SPLIT], or digits"


def open_data(
    spec: str | Path,
    *,
    preprocess: Preprocess | None = None,
    labels: str = "auto",
    split: str = "test",
    tokenizer: Any = None,
    max_length: int | None = None,
) -> Samples:
    """Open what `spec` names: a folder, .tar, .npz, CIFAR folder, `datasets:NAME[:SPLIT]` or `digits`.

    preprocess: applied to images; without it they are only divided by 255.  labels: "auto", "prefix" (NNN_ in front of
    each file name) or "none", for folders and archives.  split: where the source has several.  tokenizer, max_length:
    for text.
    Raises: DataError when the path does not exist, the format is unknown, or the content is unusable.
    """
    if spec == "digits":
        return open_digits(split=split)
    if isinstance(spec, str) and spec.startswith("datasets:"):
        name = spec.removeprefix("datasets:")
        return open_hub(name, preprocess=preprocess, split=split, tokenizer=tokenizer, max_length=max_length)
    path = Path(spec)
    if not str(spec):
        raise DataError(f"the data have no name; name {KNOWN}")
    if not path.exists():
        raise DataError(f"{path} does not exist; name {KNOWN}")
    if path.is_dir():
        cifar = find_cifar(path)
        if cifar is not None:
            return open_cifar(cifar, preprocess=preprocess, split=split)
        return open_folder(path, preprocess=preprocess, labels=labels, split=split)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return open_npz(path, preprocess=preprocess)
    if suffix == ".tar":
        return open_tar(path, preprocess=preprocess, labels=labels, split=split)
    raise DataError(f"{path} has an unknown format; name {KNOWN}{_hint(path)}")


def _hint(path: Path) -> str:
    if path.suffix.lower() in {".parquet", ".csv", ".json", ".jsonl"}:
        return f" (this one opens as datasets:{path})"
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")) or zipfile.is_zipfile(path):
        return " (this one is compressed: unpack it first)"
    return ""
