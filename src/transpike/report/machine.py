"""What the run ran on: versions of what computes, and the processor."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ALWAYS = ("numpy", "safetensors")
IF_IMPORTED = ("timm", "transformers")


def versions(device: torch.device) -> dict[str, Any]:
    """Versions by package, the platform, and the device the model lies on."""
    from .. import __version__

    packages = {name: _version(name) for name in ALWAYS}
    packages |= {name: _version(name) for name in IF_IMPORTED if name in sys.modules}
    return {
        "transpike": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **packages,
        "platform": platform.platform(),
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "num_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", None)


def processor() -> str:
    """The processor's name; on Linux from /proc/cpuinfo, because `platform` knows only the architecture there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), platform.processor() or platform.machine())
