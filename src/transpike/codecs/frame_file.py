"""The frames of a saved network: one tensor per site and part, named SITE/PART, in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..errors import ConfigError
from ..neurons import Frame
from ..types import Site
from ..zoo import digest
from ..zoo.source import reason

PARTS = tuple(field.name for field in fields(Frame))


def frame_tensors(frames: Mapping[str, Frame]) -> dict[str, torch.Tensor]:
    """What the file holds."""
    return {
        f"{site}/{part}": tensor.detach().cpu().contiguous()
        for site, frame in frames.items()
        for part, tensor in frame.tensors().items()
    }


def read_frames(path: Path, sites: Sequence[Site]) -> dict[str, Frame]:
    """The frames of the sites that have one. Raises ConfigError for a tensor that no site can stand in."""
    try:
        stored = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {reason(error)}; save the network again") from error
    known = {site.name: site for site in sites}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        name, _, part = key.rpartition("/")
        if name not in known or part not in PARTS or not _stands(tensor, part, known[name]):
            raise ConfigError(f"{path} has no sound tensor at {key!r:.80}; save the network again")
        parts.setdefault(name, {})[part] = tensor
    return {name: Frame(**tensors) for name, tensors in parts.items()}


def _stands(tensor: torch.Tensor, part: str, site: Site) -> bool:
    """Whether the tensor is finite, broadcasts against the site's, and, of a scale or gain, is above zero."""
    sizes = [1 if axis == site.batch_axis or size is None else size for axis, size in enumerate(site.shape)]
    fits = tensor.dim() == len(sizes) and all(n in (1, size) for n, size in zip(tensor.shape, sizes, strict=True))
    if not fits or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        return False
    return part in ("offset", "shift") or bool((tensor > 0).all())


def frames_digest(frames: Mapping[str, Frame]) -> str:
    return digest(sorted(frame_tensors(frames).items()))
