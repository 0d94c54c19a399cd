"""Parts of a collection: the calibration / evaluation split, and random samples of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import torch

from transpike.data.samples import Inputs, Label, Samples
from transpike.errors import ConfigError, DataError


@final
@dataclass(frozen=True, eq=False)
class Subset:
    """The samples of `parent` at `indices`, in that order."""

    parent: Samples
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.parent.name

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.parent.classes

    @property
    def parent_fingerprint(self) -> str:
        """With `indices`, all a report needs to name this split."""
        return self.parent.fingerprint()

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, i: int) -> tuple[Inputs, Label]:
        return self.parent.fetch(self.indices[i])

    def item_name(self, i: int) -> str:
        return self.parent.item_name(self.indices[i])

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.parent_fingerprint} {self.indices}".encode()).hexdigest()

    def digests(self) -> tuple[str, ...]:
        every = self.parent.digests()
        return tuple(every[i] for i in self.indices)


def split(
    samples: Samples, *, calibration: int | None = None, seed: int = 0, every: int | None = None
) -> tuple[Subset, Subset]:
    """Disjoint (calibration, evaluation): `calibration` random samples, or, with `every=k`, samples 0, k, 2k, ...

    Both parts keep the order of `samples`; `every` decides alone when given.
    Raises: DataError when either part would be empty; ConfigError when neither rule is given.
    """
    total = len(samples)
    if every is not None:
        if every < 1:
            raise ConfigError(f"every={every} is not a stride; give 2 or more")
        chosen = list(range(0, total, every))
    elif calibration is not None:
        if not 0 < calibration < total:
            raise DataError(
                f"cannot take {calibration} of the {total} samples of {samples.name!r} for calibration and leave some "
                f"on either side; choose between 1 and {total - 1}"
            )
        chosen = _draw(total, calibration, seed=seed)
    else:
        raise ConfigError("a split needs calibration=COUNT or every=STRIDE; give one")
    held = set(chosen)
    rest = [i for i in range(total) if i not in held]
    if not chosen or not rest:
        raise DataError(
            f"every={every} leaves {len(rest)} of the {total} samples of {samples.name!r} for evaluation and "
            f"{len(chosen)} for calibration; use more samples or another stride"
        )
    return Subset(samples, tuple(chosen)), Subset(samples, tuple(rest))


def take(samples: Samples, n: int, *, seed: int = 0) -> Subset:
    """At most n random samples, in the order of `samples`.

    Raises: DataError when n is not positive.
    """
    if n < 1:
        raise DataError(f"cannot take {n} samples of {samples.name!r}; ask for at least 1")
    return Subset(samples, tuple(_draw(len(samples), min(n, len(samples)), seed=seed)))


def _draw(total: int, count: int, *, seed: int) -> list[int]:
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed {seed} does not fit 64 bits; choose a smaller one")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())
