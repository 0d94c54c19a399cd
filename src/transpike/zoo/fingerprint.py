"""What names tensors by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 (hex) over names, types, shapes and bytes; of tensors on the meta device there are no bytes."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel() and not tensor.is_meta:
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_digest(module: torch.nn.Module) -> str:
    """`digest` of all parameters and buffers, those that are not saved included."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return digest(sorted(named.items()))
