"""Bytes: how converted networks are written and read, one file per format."""

from .bundle import FORMAT_VERSION, read_config, save

__all__ = ["FORMAT_VERSION", "read_config", "save"]
