"""All that survives a step of the network in spikes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from .errors import DataError


@dataclass(frozen=True)
class Batch:
    """The inputs a state belongs to: their `shapes` in words, and the checksum of shapes, types and values."""

    shapes: str
    sha256: str


@dataclass
class State:
    """After step t: membranes by site; by node, sums of operands, P, and the total a module has emitted."""

    t: int = 0
    membranes: dict[str, torch.Tensor] = field(default_factory=dict)
    sums: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    products: dict[str, torch.Tensor] = field(default_factory=dict)
    emitted: dict[str, torch.Tensor] = field(default_factory=dict)
    output: torch.Tensor | None = None
    batch: Batch | None = None

    def copy(self) -> State:
        """A state that the next step may change and leave this one as it is: tensors are replaced, never changed."""
        return replace(
            self,
            membranes=dict(self.membranes),
            sums=dict(self.sums),
            products=dict(self.products),
            emitted=dict(self.emitted),
        )

    def check_batch(self, batch: Batch) -> None:
        """Raises DataError when the state belongs to other inputs."""
        if self.batch is None or self.batch == batch:
            return
        difference = f"inputs of shape {self.batch.shapes}, not {batch.shapes}"
        if self.batch.shapes == batch.shapes:
            difference = f"other inputs of shape {batch.shapes}"
        raise DataError(f"the state after step {self.t} was made with {difference}; go on with the same samples")


def batch_of(leaves: Iterable[torch.Tensor]) -> Batch:
    leaves = tuple(leaves)
    shapes = " and ".join(str(list(leaf.shape)) for leaf in leaves)
    return Batch(shapes, checksum((str(i), leaf) for i, leaf in enumerate(leaves)))


def checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 in hexadecimal over name, type, shape and bytes of each tensor, in this order."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
