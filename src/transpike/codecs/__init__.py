"""Bytes: how converted networks are written and read, one file per format.

The saved network here; what hardware takes in `events`, `weights` and `nir_graph` (docs/hardware.md).
"""

from .bundle import FORMAT_VERSION, read_config, save

__all__ = ["FORMAT_VERSION", "read_config", "save"]
