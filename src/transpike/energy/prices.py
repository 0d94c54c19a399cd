"""Price tables: picojoule per operation, with the source of every number."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

KINDS = ("accumulate", "multiply_accumulate")
DEFAULT = "horowitz_45nm"


@dataclass(frozen=True)
class PriceTable:
    """`pj[kind]` in picojoule per operation; `sources[kind]` says where the number comes from."""

    name: str
    pj: Mapping[str, float]
    sources: Mapping[str, str]


def load_prices(table: str | Path = DEFAULT) -> PriceTable:
    """A table that ships with transpike, by name, or one of your own, by path to a TOML file.

    Raises ConfigError for a missing file or kind, an unknown unit, or a price that is not a positive number.
    """
    path = Path(table) if str(table).endswith(".toml") else Path(__file__).with_name(f"{table}.toml")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no price table {table}; give the name of a built-in table or the path of a .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"price table {path} is not TOML: {error}") from error
    if data.get("unit") != "pJ":
        raise ConfigError(f"price table {path} has unit {data.get('unit')!r}; the only unit is 'pJ'")
    for kind in KINDS:
        price = data.get(kind, {}).get("pj")
        if not isinstance(price, (int, float)) or price <= 0:
            raise ConfigError(f"price table {path} needs a positive pj under [{kind}], not {price!r}")
        if not data[kind].get("source"):
            raise ConfigError(f"price table {path} needs a source under [{kind}]")
    return PriceTable(
        str(data.get("name", path.stem)),
        {kind: float(data[kind]["pj"]) for kind in KINDS},
        {kind: str(data[kind]["source"]) for kind in KINDS},
    )
