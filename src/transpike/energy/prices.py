"""Price tables: picojoule per operation or per bit, with the source of every number, and what a chip assumes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FLOAT = (
    "accumulate", "multiply_accumulate", "add", "multiply", "compare", "shift", "division", "square_root",
    "exponential", "error_function",
)  # fmt: skip
INTEGER = ("int_add", "int_compare", "int_shift", "int8_multiply")
DATA = ("weight_read", "state_access", "activation_access", "event_route", "dense_route")
KINDS = (*FLOAT, *INTEGER, *DATA)
NEVER_FREE = ("accumulate", "multiply_accumulate", "int_add")  # what the others are compared with
DEFAULT = "horowitz_45nm"


@dataclass(frozen=True)
class Assumptions:
    """What a chip decides besides its prices.

    hops -- network-on-chip hops of an event or activation. state_bits -- width of membranes and running sums.
    weight_bits -- width of weights in the integer comparisons. synapses_per_weight_read -- spikes that share one read
    of a weight: 1 reads it anew for every spike.
    """

    hops: float = 1.0
    state_bits: float = 32.0
    weight_bits: float = 8.0
    synapses_per_weight_read: float = 1.0


@dataclass(frozen=True)
class PriceTable:
    """`pj[kind]` in picojoule per operation, or per bit (and hop) for data; `sources[kind]` says where it is from."""

    name: str
    pj: Mapping[str, float]
    sources: Mapping[str, str]
    assumptions: Assumptions = field(default_factory=Assumptions)

    def integer_multiply_accumulate(self, one: float, other: float) -> float:
        """A multiplier grows with the product of its widths; the sum is a 32-bit one."""
        return self.pj["int8_multiply"] * one * other / 64 + self.pj["int_add"]


def load_prices(table: str | Path = DEFAULT) -> PriceTable:
    """A table that ships with transpike, by name, or one of your own, by path to a TOML file.

    Every kind is a table with `pj` and `source`; prices of data also have `bits`, the width of the word the price is
    of. Raises ConfigError naming a missing file or kind, an unknown unit, key or kind, or a price that makes no sense.
    """
    path = Path(table) if str(table).endswith(".toml") else Path(__file__).with_name(f"{table}.toml")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted({file.stem for file in Path(__file__).parent.glob("*.toml")} - {"literature"}))
        raise ConfigError(f"no price table {table}; built in are {known}, or give the path of a .toml file") from None
    except OSError as error:
        raise ConfigError(f"price table {path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"price table {path} is not TOML: {error}") from error
    if data.get("unit") != "pJ":
        raise ConfigError(f"price table {path} has unit {data.get('unit')!r}; the only unit is 'pJ'")
    unknown = sorted(set(data) - {"name", "description", "unit", "assumptions", *KINDS})
    if unknown:
        raise ConfigError(f"price table {path} has an unknown kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    pj = {kind: _price(data.get(kind), kind, path) for kind in KINDS}
    sources = {kind: str(data[kind]["source"]) for kind in KINDS}
    return PriceTable(str(data.get("name", path.stem)), pj, sources, _assumptions(data.get("assumptions", {}), path))


def _price(row: Any, kind: str, path: Path) -> float:
    if not isinstance(row, Mapping) or "pj" not in row:
        raise ConfigError(f"price table {path} has no price for {kind}; add [{kind}] with pj and source")
    price, bits = row["pj"], row.get("bits", 1)
    if not _number(price) or price < 0 or (price == 0 and kind in NEVER_FREE):
        raise ConfigError(f"price table {path} needs a positive pj under [{kind}], not {price!r}")
    if kind in DATA and "bits" not in row:
        raise ConfigError(f"price table {path} must say under [{kind}] of how many bits the price is (bits = 32)")
    if not _number(bits) or bits <= 0 or ("bits" in row and kind not in DATA):
        raise ConfigError(f"price table {path} has bits = {bits!r} under [{kind}], which makes no sense there")
    if not row.get("source"):
        raise ConfigError(f"price table {path} needs a source under [{kind}]")
    return float(price) / float(bits)


def _assumptions(given: Any, path: Path) -> Assumptions:
    known = {f.name for f in fields(Assumptions)}
    if not isinstance(given, Mapping) or set(given) - known:
        raise ConfigError(f"price table {path}: [assumptions] takes {', '.join(sorted(known))}")
    for key, value in given.items():
        if not _number(value) or value <= 0:
            raise ConfigError(f"price table {path} needs a positive number for {key}, not {value!r}")
    return Assumptions(**{key: float(value) for key, value in given.items()})


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
