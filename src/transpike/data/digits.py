"""The handwritten digits that come with the package."""

from __future__ import annotations

import numpy as np

from transpike.data.arrays import Arrays, as_tensor
from transpike.errors import DataError


def open_digits(*, split: str) -> Arrays:
    """Inputs float32 [1, 8, 8] = value / 16; they are ready for the model, no preprocessing applies.

    Raises: DataError when split is neither train nor test.
    """
    from transpike.zoo.digits import load_digits

    if split not in {"train", "test"}:
        raise DataError(f"digits has the splits train and test, not {split!r}; choose one of them")
    values, labels = load_digits(split=split)
    x = values[:, None].astype(np.float32) / 16
    return Arrays(f"digits/{split}", tuple("0123456789"), x, labels, as_tensor)
