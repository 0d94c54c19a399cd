"""Read CIFAR's batch files, which are pickles, without executing a pickle.

The machine that decodes a pickle may call whatever `find_class` hands it.  Here it only ever gets stand-ins that record
bytes, under exactly the names that such a file needs; any other name is refused before anything is called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from transpike.errors import DataError


class _Dtype:
    """Records which dtype was named; `numpy.dtype(code, align, copy)`."""

    def __init__(self, code: object = "", *rest: object) -> None:
        del rest
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        del state  # byte order and padding, which one-byte numbers do not have


class _Array:
    """Records the state of an array: (version, shape, dtype, is_fortran, bytes)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def rebuild(self) -> np.ndarray:
        _, shape, dtype, is_fortran, content = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in {"u1", "|u1", "uint8"}:
            raise ValueError("an array in it is not uint8")
        content = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol 2 written by Python 3 spells bytes as `_codecs.encode(text, "latin1")`.
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("bytes in it are not spelled as latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Inert(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            raise DataError(
                f"it asks for {module_name}.{global_name}, which a CIFAR file never needs; do not trust this file"
            ) from None


def read_inert(path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR batch file, its arrays as uint8.

    Raises: DataError when the file asks for anything but plain numbers, strings and uint8 arrays, or is broken.
    """
    try:
        content = _Inert(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        entries = {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
        return {key: value.rebuild() if isinstance(value, _Array) else value for key, value in entries.items()}
    except DataError as error:
        raise DataError(f"{path} was refused: {error}") from error
    except Exception as error:  # a broken pickle can fail with any type
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is not a CIFAR batch file ({reason}); fetch the data set again") from error
