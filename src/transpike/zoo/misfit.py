"""What keeps stored tensors from fitting a model, and how to say it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from transpike.errors import CheckpointError

NAMED = 5  # tensors named in a message, beyond which they are counted


class Misfit(NamedTuple):
    """Names that only the model has, names that only the file has, and names with what differs about them."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def misfit_error(path: str | Path, model_name: str, misfit: Misfit) -> CheckpointError:
    """The error that names the first few tensors of each sort, with their counts."""
    parts = [
        f"{listed(names)} {what}"
        for names, what in zip(misfit, ("missing", "unexpected", "of another shape, type or tying"), strict=True)
        if names
    ]
    return CheckpointError(
        f"{path} is not a checkpoint of this {model_name}: {', '.join(parts)}; "
        "name the model, and the options, that the weights were trained with"
    )


def listed(names: Iterable[str]) -> str:
    """The number of tensors and the first names: "7 tensors (a, b, c, d, e, ...)"."""
    names = list(names)
    more = ", ..." if len(names) > NAMED else ""
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} ({', '.join(names[:NAMED])}{more})"
