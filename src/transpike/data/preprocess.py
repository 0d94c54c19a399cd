"""Image -> tensor, as timm's evaluation transform does it, without torchvision.

    resize (shorter edge / squash / longer edge to floor(size / crop_pct)) -> centre crop -> (x / 255 - mean) / std

Source: timm, `transforms_imagenet_eval` (timm/data/transforms_factory.py) on top of torchvision's PIL functions; the
rounding of sizes and offsets is theirs.  Differs: an unknown crop_mode is refused instead of read as "center".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from transpike.errors import ConfigError, DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
# timm's defaults for keys a configuration leaves out (timm/data/config.py, constants.py).
_DEFAULTS: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def require_pil() -> ModuleType:
    """PIL.Image, or MissingExtra."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "reading and resizing images") from error
    return Image


@final
@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images: input_size (C, H, W), mean and std per channel in units of 0..1.

    input_size None keeps each image's size, with as many channels as `mean` has entries.
    Raises: ConfigError for values that make no sense.
    """

    input_size: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.input_size is not None and (len(self.input_size) != 3 or min(self.input_size) < 1):
            raise ConfigError(f"input_size {self.input_size} is not (channels, height, width); give three sizes")
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in {1, self.channels}:
                raise ConfigError(
                    f"preprocessing has {self.channels} channels but {key} {getattr(self, key)}; give one per channel"
                )
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"std {self.std} must be positive; give the standard deviation of each channel")
        if not self.crop_pct > 0:
            raise ConfigError(f"crop_pct {self.crop_pct} must be positive; 0.875 is usual, 1.0 crops nothing")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation {self.interpolation!r} is unknown; use {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise ConfigError(f"crop_mode {self.crop_mode!r} is unknown; use {', '.join(CROP_MODES)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocess:
        """From timm's data config or pretrained_cfg: other keys are ignored, absent ones take timm's defaults.

        An explicit `input_size: None` means "no resizing" here.
        """
        found = {key: config[key] for key in _DEFAULTS if config.get(key) is not None}
        if "input_size" in config and config["input_size"] is None:
            found["input_size"] = None
        merged = _DEFAULTS | found
        for key in ("input_size", "mean", "std"):
            if merged[key] is not None:
                merged[key] = tuple(merged[key])
        return cls(**merged)

    @property
    def channels(self) -> int:
        return len(self.mean) if self.input_size is None else self.input_size[0]

    def __call__(self, image: Image | np.ndarray) -> Tensor:
        """One image (PIL, or uint8 [H, W] or [H, W, C]) -> float32 [C, H, W].

        Raises: DataError for pixels that are not 8-bit or a channel count that cannot be converted.
        """
        if isinstance(image, np.ndarray):
            pixels_hwc = _as_hwc(image)
            if not self._fits(pixels_hwc):
                pixels_hwc = self._through_pil(_to_pil(pixels_hwc, channels=self.channels))
        else:
            pixels_hwc = self._through_pil(image)
        return self._normalise(pixels_hwc)

    def _fits(self, pixels_hwc: np.ndarray) -> bool:
        height, width, channels = pixels_hwc.shape
        same_size = self.input_size is None or ((height, width) == self.input_size[1:] and self.crop_pct == 1)
        # One channel broadcasts to three exactly as PIL's L -> RGB does.
        return same_size and (channels == self.channels or (channels, self.channels) == (1, 3))

    def _through_pil(self, image: Image) -> np.ndarray:
        if image.mode.startswith(("I", "F")):
            raise DataError(f"image mode {image.mode!r} holds more than 8 bits per pixel; convert it to 8 bits first")
        mode = {1: "L", 3: "RGB"}.get(self.channels)
        if mode is None:
            raise DataError(
                f"an image file cannot give {self.channels} channels; store arrays [H, W, {self.channels}] in a .npz"
            )
        image = image if image.mode == mode else image.convert(mode)
        if self.input_size is not None:
            image = self._resize_and_crop(image, self.input_size[1:])
        return _as_hwc(np.array(image))

    def _resize_and_crop(self, image: Image, size: tuple[int, int]) -> Image:
        scaled = (math.floor(size[0] / self.crop_pct), math.floor(size[1] / self.crop_pct))
        height, width = image.height, image.width
        if self.crop_mode == "squash":
            target = scaled
        elif self.crop_mode == "border":
            target = _keep_ratio(height, width, max(height / scaled[0], width / scaled[1]))
        elif scaled[0] == scaled[1]:
            # torchvision truncates the longer edge where timm's keep-ratio resize rounds it.
            longer = int(scaled[0] * max(height, width) / min(height, width))
            target = (longer, scaled[0]) if width <= height else (scaled[0], longer)
        else:
            target = _keep_ratio(height, width, min(height / scaled[0], width / scaled[1]))
        if target != (height, width):
            resample = getattr(require_pil().Resampling, self.interpolation.upper())
            image = image.resize((target[1], target[0]), resample)
        fill = [round(255 * value) for value in self.mean] if self.crop_mode == "border" else [0]
        return _centre_crop(image, size, fill * (self.channels // len(fill)))

    def _normalise(self, pixels_hwc: np.ndarray) -> Tensor:
        x_chw = torch.from_numpy(np.array(pixels_hwc.transpose(2, 0, 1), order="C")).to(torch.float32).div(255)
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return x_chw.expand(self.channels, -1, -1).sub(mean).div(std)


def as_it_is(channels: int) -> Preprocess:
    """Pixels / 255, no resizing: what is done when nobody said otherwise."""
    return Preprocess(None, (0.0,) * channels, (1.0,) * channels, "bicubic", 1.0)


def _as_hwc(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in {2, 3}:
        raise DataError(f"an image array must be uint8 [H, W] or [H, W, C], not {array.dtype} {list(array.shape)}")
    return array[:, :, None] if array.ndim == 2 else array


def _to_pil(pixels_hwc: np.ndarray, *, channels: int) -> Image:
    if pixels_hwc.shape[2] not in {1, 3, 4}:
        raise DataError(
            f"an image of shape {list(pixels_hwc.shape)} cannot become {channels} channels of another size; "
            "resize it beforehand, and store it as [H, W, C]"
        )
    return require_pil().fromarray(pixels_hwc[:, :, 0] if pixels_hwc.shape[2] == 1 else pixels_hwc)


def _keep_ratio(height: int, width: int, ratio: float) -> tuple[int, int]:
    return round(height / ratio), round(width / ratio)


def _centre_crop(image: Image, size: tuple[int, int], fill: list[int]) -> Image:
    height, width = size
    if width > image.width or height > image.height:
        canvas_size = (max(width, image.width), max(height, image.height))
        canvas = require_pil().new(image.mode, canvas_size, tuple(fill) if len(fill) > 1 else fill[0])
        canvas.paste(image, (max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)))
        image = canvas
    top = int(round((image.height - height) / 2.0))
    left = int(round((image.width - width) / 2.0))
    return image.crop((left, top, left + width, top + height))
