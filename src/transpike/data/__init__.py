"""Data: what a user names -> samples a model can take.

    open_data(spec)  -> Samples            a folder, .tar, .npz, CIFAR, `datasets:NAME`, `digits`
    split / take     -> Subset             seeded, disjoint, recorded
    loader(samples)  -> Iterator[Batch]    checked, in order, bad files skipped and told
    windows(samples, numbers) -> Iterator[Window]   the same by number, for runs that are divided or continued

A source is one small file with one `open_...` function, and one line in door.py.
"""

from __future__ import annotations

from transpike.data.door import open_data
from transpike.data.loader import Batch, loader
from transpike.data.preprocess import Preprocess
from transpike.data.samples import Inputs, Label, Samples
from transpike.data.subset import Subset, split, take
from transpike.data.windows import Window, windows

__all__ = [
    "Batch",
    "Inputs",
    "Label",
    "Preprocess",
    "Samples",
    "Subset",
    "Window",
    "loader",
    "open_data",
    "split",
    "take",
    "windows",
]
