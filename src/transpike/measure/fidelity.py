"""How well each site carries its signal: quantisation noise, saturation and silence, summed over batches and steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite, log10
from typing import Any

import numpy as np
import torch

from ..table import Table, shorten

FORMAT = "transpike-layers"
FORMAT_VERSION = 1
LIMIT_DB = 200.0  # float32 itself ends at about 150 dB


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), held within +-LIMIT_DB: +LIMIT_DB when there is no noise, so that JSON can hold it.

    Raises ValueError when a sum is not finite.
    """
    if not (isfinite(signal) and isfinite(noise)):
        raise ValueError("the sum of squares is not finite")
    if noise == 0:
        return LIMIT_DB
    if signal == 0:
        return -LIMIT_DB
    return min(max(10 * (log10(signal) - log10(noise)), -LIMIT_DB), LIMIT_DB)


def square_sum(value: torch.Tensor) -> float:
    """Sum of squares in float64."""
    flat = value.double().flatten()
    return float(flat.dot(flat))


class SiteSums:
    """Streaming sums of one site, over batches; order: `begin` once a batch, then `step` for t = 0..T-1.

    signal -- sum of x^2 of the source activation x. noise [T] -- sum of (x - M_out(t))^2. drive, own [T] -- the same
    two of M_in(t) in place of x. largest [T] -- neurons whose spike has the largest level. pinned -- neurons whose
    every spike has. elements -- neurons x samples. alive -- which neurons of a sample ever fired; None where samples
    share them. The source activation is kept from `begin` to the last step only.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.signal, self.elements, self.pinned = 0.0, 0, 0
        self.noise, self.drive, self.own = (np.zeros(steps) for _ in range(3))
        self.largest = np.zeros(steps, np.int64)
        self.alive: torch.Tensor | None = None
        self._source: torch.Tensor | None = None
        self._always: torch.Tensor | None = None

    def begin(self, source: torch.Tensor) -> None:
        self._source, self._always = source, None
        self.signal += square_sum(source)
        self.elements += source.numel()

    def step(self, t: int, mean_in: torch.Tensor, mean_out: torch.Tensor, at_largest: torch.Tensor) -> None:
        """Arguments, all in the source's shape: running means of input and output after step t (0-based), and which
        neurons emitted their largest level in it."""
        assert self._source is not None, "begin comes first"
        self.noise[t] += square_sum(self._source - mean_out)
        self.drive[t] += square_sum(mean_in)
        self.own[t] += square_sum(mean_in - mean_out)
        self.largest[t] += int(at_largest.sum())
        self._always = at_largest if self._always is None else self._always & at_largest
        if t == self.steps - 1:
            self.pinned += int(self._always.sum())
            self._source = self._always = None

    def fired(self, neurons: torch.Tensor) -> None:
        """Which neurons fired, of one sample's shape: True where any sample's did."""
        self.alive = neurons if self.alive is None else self.alive | neurons

    @property
    def dead(self) -> float | None:
        return None if self.alive is None else 1.0 - int(self.alive.sum()) / max(self.alive.numel(), 1)

    @property
    def sqnr_db(self) -> tuple[float, ...]:
        return tuple(decibel(self.signal, float(noise)) for noise in self.noise)

    @property
    def local_sqnr_db(self) -> tuple[float, ...]:
        return tuple(decibel(float(drive), float(own)) for drive, own in zip(self.drive, self.own, strict=True))

    @property
    def saturation(self) -> tuple[float, ...]:
        return tuple((self.largest / max(self.elements, 1)).tolist())


@dataclass(frozen=True)
class SiteReport:
    """What one site did; lists by step have index 0 for t = 1, shares are in 0..1.

    firing [T] -- spikes per neuron in each step. saturation [T] -- share of neurons whose spike has the largest level
    of its sign. pinned -- share of neurons that send it at every step: their input lies at the end of the range or
    beyond. dead -- share of neurons that fired on no sample at any step (None where the batch lies in two dimensions
    and neurons cannot be told apart). sqnr_db [T] -- of M_out(t) against the source activation: all noise up to here.
    local_sqnr_db [T] -- of M_out(t) against M_in(t): the noise this site alone adds. Both are held within +-200 dB, and
    200 means no error at all. energy_pj -- per sample over all steps: operations of the layers that read the site, at
    the accumulate price; a layer with several sites counts for each in equal parts. energy_share -- of the account.
    """

    name: str
    kind: str
    neurons: int
    firing: tuple[float, ...]
    saturation: tuple[float, ...]
    pinned: float
    dead: float | None
    sqnr_db: tuple[float, ...]
    local_sqnr_db: tuple[float, ...]
    energy_pj: float
    energy_share: float

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class LayerView:
    """Which layer hurts: `sites` in the order of the graph. The worst is the site that alone adds most noise, that is,
    whose local SQNR at step T is the lowest; sites behind it inherit its noise and show it in `sqnr_db` only."""

    steps: int
    samples: int
    sites: tuple[SiteReport, ...]
    energy_pj: float  # per sample, with layers that read no site

    def worst(self, count: int | None = None) -> tuple[SiteReport, ...]:
        """The sites by local SQNR at step T, lowest first."""
        return tuple(sorted(self.sites, key=lambda site: site.local_sqnr_db[-1])[:count])

    def worst_table(self, count: int | None = None) -> Table:
        shown = self.worst(count)
        of = "" if len(shown) == len(self.sites) else f", {len(shown)} of {len(self.sites)}"
        return self._table(f"Sites, worst first{of}", shown)

    def table(self) -> Table:
        return self._table("Sites in graph order", self.sites)

    def _table(self, title: str, sites: tuple[SiteReport, ...]) -> Table:
        steps = some_steps(self.steps)
        sqnr = tuple(f"SQNR t={t}" for t in steps)
        columns = ("site", "kind", "own dB", *sqnr, "spikes", "largest %", "pinned %", "dead %", "energy %")
        return Table(title, columns, tuple(_row(site, steps) for site in sites), self._notes())

    def _notes(self) -> tuple[str, ...]:
        rest = self.energy_pj - sum(site.energy_pj for site in self.sites)
        return (
            f"{self.samples} samples, T = {self.steps}; own: noise this site alone adds, M_out(T) against its input; "
            "SQNR t: M_out(t) against the source activation, dB",
            "spikes: per neuron over all steps; largest: neurons at their largest level, mean of steps; pinned: at "
            "every step; dead: fired on no sample",
            f"energy: accumulates of the layers that read the site, of {self.energy_pj / 1e6:.3g} uJ per sample"
            + (f", {100 * rest / self.energy_pj:.1f} % of it in layers without a neuron" if rest > 1e-6 else ""),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values only, none of them NaN or infinite; sites in graph order, `worst` names them by local SQNR."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "steps": self.steps,
            "samples": self.samples,
            "energy_pj": self.energy_pj,
            "worst": [site.name for site in self.worst()],
            "sites": [site.to_json() for site in self.sites],
        }

    def __str__(self) -> str:
        return str(self.worst_table())

    def __rich__(self) -> Any:
        return self.worst_table().__rich__()


def some_steps(steps: int) -> tuple[int, ...]:
    """Powers of two up to T, and T."""
    return tuple(sorted({2**k for k in range(steps.bit_length()) if 2**k <= steps} | {steps}))


def _row(site: SiteReport, steps: tuple[int, ...]) -> tuple[str, ...]:
    sqnr = (f"{site.sqnr_db[t - 1]:.1f}" for t in steps)
    shares = (sum(site.saturation) / len(site.saturation), site.pinned, site.dead, site.energy_share)
    percents = ("-" if share is None else f"{100 * share:.1f}" for share in shares)
    name = shorten(site.name, 56)
    return name, site.kind, f"{site.local_sqnr_db[-1]:.1f}", *sqnr, f"{sum(site.firing):.2f}", *percents
