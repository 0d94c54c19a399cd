"""What the user asks for -> a DeviceMap that covers the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ConfigError, MissingExtra
from .placing import DISK, DeviceMap

MaxMemory = Mapping[int | str, int | str]
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")  # as in Hugging Face


def chosen_map(device_map: Any, module: torch.nn.Module, max_memory: MaxMemory | None = None) -> DeviceMap:
    """A device for every parameter and buffer of `module`.

    Arguments: device_map -- a dict {module path or prefix: device}, where a device is an index, a name, "cpu" or
    "disk", and "" stands for all that no longer prefix names; one device for everything; or "auto", "balanced",
    "balanced_low_0", "sequential", which accelerate works out. max_memory -- for those: {device: bytes or "10GB"}.
    Raises: ConfigError for a prefix that names nothing, a parameter without a device, or a device that is not there;
    MissingExtra without accelerate.
    """
    if isinstance(device_map, str) and device_map in AUTOMATIC:
        device_map = _worked_out(module, device_map, max_memory)
    elif max_memory is not None:
        raise ConfigError(f"max_memory goes with a device_map of {', '.join(AUTOMATIC)}; leave it out")
    found = asked(device_map)
    _check_cover(found, module)
    return found


def asked(device_map: Any) -> DeviceMap:
    """What is no name of `AUTOMATIC`, before there is a module. Raises ConfigError for what is no device of here."""
    if isinstance(device_map, (str, int, torch.device)):
        device_map = {"": device_map}
    if not isinstance(device_map, Mapping) or not device_map:
        raise ConfigError(f"device_map must be {', '.join(AUTOMATIC)}, a device or a dict, not {device_map!r}")
    found = DeviceMap({str(path): _place(str(path), device) for path, device in device_map.items()})
    _check_present(found)
    return found


def _worked_out(module: torch.nn.Module, how: str, max_memory: MaxMemory | None) -> Mapping[str, Any]:
    try:
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ImportError as error:
        raise MissingExtra("accelerate", "distributed", f"device_map={how!r}") from error
    most: Any = None if max_memory is None else dict(max_memory)
    try:
        if how != "sequential":
            most = get_balanced_memory(module, most, low_zero=how == "balanced_low_0")
        return infer_auto_device_map(module, most)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"max_memory {max_memory!r} does not serve device_map={how!r}: {error}") from error


def _place(path: str, device: Any) -> str:
    if device == DISK:
        return DISK
    try:
        if isinstance(device, int) and not isinstance(device, bool):
            kind = torch.accelerator.current_accelerator()
            return str(torch.device("cuda" if kind is None else kind.type, device))
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device_map puts {path or 'everything'} on {device!r}, which is no device; use 'cpu', 'disk' or a device "
            "such as 'cuda:0'"
        ) from error
    return "cpu" if found.type == "cpu" else str(found)


def _check_present(where: DeviceMap) -> None:
    """Raises ConfigError for a device that this machine does not have."""
    for path, place in where.places.items():
        if place in (DISK, "cpu"):
            continue
        device = torch.device(place)
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if kind is None or device.type != kind.type or (device.index or 0) >= torch.accelerator.device_count():
            raise ConfigError(f"device_map puts {path or 'everything'} on {place}, which this machine does not have")


def _check_cover(where: DeviceMap, module: torch.nn.Module) -> None:
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    known = {*tensors, *dict(module.named_modules())}
    known |= {name for name, _ in module.named_parameters(remove_duplicate=False)}
    strange = [path for path in where.places if path not in known]
    if strange:
        raise ConfigError(
            f"device_map names {_some(strange)}, which {type(module).__name__} does not have; "
            f"its parts are {_some([name for name, _ in module.named_children()])}"
        )
    without = [name for name in tensors if where.place(name) is None]
    if without:
        raise ConfigError(f"device_map gives no device for {_some(without)}; add them, or '' for all that is not named")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
