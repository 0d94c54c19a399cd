"""A batch of the right shape for a model, for looking at it before any data is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from transpike.errors import ModelError
from transpike.zoo.preprocessing import data_config

TEXT_LENGTH = 16


def example_inputs(model: nn.Module, *, shape: Sequence[int] | None = None, integers: bool = False) -> Any:
    """Two zero samples: of `shape` (without batch) when given, else what the model's own configuration says.

    Raises: ModelError when neither says it.
    """
    if shape is not None:
        return torch.zeros((2, *shape), dtype=torch.int64) if integers else _floats(model, shape)
    config = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    size = data_config(model).get("input_size")
    if name == "input_ids" and config is not None:
        length = min(TEXT_LENGTH, getattr(config, "max_position_embeddings", TEXT_LENGTH) or TEXT_LENGTH)
        ids = torch.ones((2, length), dtype=torch.int64)
        return {"attention_mask": torch.ones_like(ids), "input_ids": ids}
    if name == "pixel_values" and config is not None:
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", None)
        side = (side, side) if isinstance(side, int) else side
        if size is None and side is not None:
            size = (getattr(vision, "num_channels", 3), *side)
        if size is not None:
            return {"pixel_values": _floats(model, size)}
    if size is None:
        name = type(model).__name__
        raise ModelError(f"nothing says which inputs {name} takes; name their shape: --input-shape 3,224,224")
    return _floats(model, size)


def _floats(model: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.zeros((2, *shape), dtype=dtype)
