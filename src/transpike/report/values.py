"""Values as reports have them: JSON values, and shares as text."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..measure import interval


def json_value(value: Any, where: str) -> Any:
    """The same value of JSON types only; `where` names it in an error."""
    if isinstance(value, (np.ndarray, np.generic)):
        return json_value(value.tolist(), where)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, (str, Path)):  # a file name may hold bytes that are not UTF-8, as lone surrogates
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {str(key): json_value(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item, f"{where}[{index}]") for index, item in enumerate(value)]
    kind = type(value).__name__
    raise ConfigError(f"{where} is a {kind}, which JSON cannot hold; pass text, numbers, lists or mappings")


def percent(share: float) -> str:
    """0.5 -> "50.00"."""
    return f"{100 * share:.2f}"


def percent_interval(share: float, samples: int) -> str:
    """The 95 % interval (Wilson) of a share of `samples`, in percent."""
    low, high = interval(share, samples)
    return f"{100 * low:.1f} - {100 * high:.1f}"
