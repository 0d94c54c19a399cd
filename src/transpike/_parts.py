"""Samples that calibrate and samples that are evaluated, kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .data import Samples, Subset, split, take
from .errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """Samples and where they came from, for the report and for keeping calibration and evaluation apart."""

    samples: Samples
    spec: str

    @property
    def whole(self) -> Samples:
        """The data that the samples are a part of."""
        return _whole(self.samples)

    def record(self) -> dict[str, Any]:
        whole = self.whole
        return {
            "data": self.spec,
            "name": self.samples.name,
            "fingerprint": whole.fingerprint(),
            "samples": len(self.samples),
            "of": len(whole),
            "indices": _indices(self.samples),
        }

    def used(self) -> dict[str, Any]:
        """The record of samples that are not to be evaluated: with digests, which find them in other data, too."""
        return {**self.record(), "digests": list(self.samples.digests())}


def _indices(samples: Samples) -> list[int] | None:
    """Positions in the whole data, or None for all of it."""
    if not isinstance(samples, Subset):
        return None
    outer = _indices(samples.parent)
    return list(samples.indices) if outer is None else [outer[i] for i in samples.indices]


def drawn(samples: Samples, *, count: int, every: int | None, seed: int) -> Subset:
    """Samples that calibrate: every k-th or, where that is not asked, `count` random ones at most."""
    if every is None:
        return take(samples, count, seed=seed)
    if every < 1:
        raise ConfigError(f"every={every} is not a stride; give 1 or more")
    return Subset(samples, tuple(range(0, len(samples), every)))


def separate(
    data: Part, calibration: Part | None, *, count: int, every: int | None, seed: int
) -> tuple[Part, Part, str]:
    """(calibration, evaluation) with no sample in both, and a remark on how they were kept apart ("": nothing to do).

    One source serving both, or two of the same inputs in the same order, is split: every k-th sample, or `count` random
    ones, calibrate. Otherwise what calibrates is left out of the evaluation.
    """
    if calibration is not None and calibration.whole.digests() != data.whole.digests():
        few = Part(drawn(calibration.samples, count=count, every=every, seed=seed), calibration.spec)
        return few, *without_calibration(data, few.used(), did="calibrate")
    if len(data.samples) < 2:
        raise DataError(f"{data.spec} has 1 sample here, which cannot both calibrate and be evaluated; give more")
    half = min(count, max(1, len(data.samples) // 2))
    chosen, rest = split(data.samples, calibration=half, seed=seed, every=every)
    how = f"every {every}th sample" if every is not None else f"{len(chosen)} random samples (seed {seed})"
    remark = f"calibration and evaluation share {data.spec}: {how} calibrate, the other {len(rest)} are evaluated"
    return Part(chosen, data.spec), Part(rest, data.spec), remark


def _whole(samples: Samples) -> Samples:
    while isinstance(samples, Subset):
        samples = samples.parent
    return samples


def without_calibration(
    data: Part, saved: Mapping[str, Any], *, did: str = "calibrated this network"
) -> tuple[Part, str]:
    """`data` less the samples that `saved`, the record of a network's calibration, names: by position where it is the
    same data, by content where it is other data. `did`: what they did."""
    kept = _others(data, saved)
    if not kept:
        use = "tune the recipe" if did.startswith("tuned") else "calibrate this network"
        raise DataError(f"every sample of {data.spec} was used to {use}; evaluate on other data")
    if len(kept) == len(data.samples):
        return data, ""
    remark = f"{len(data.samples) - len(kept)} samples of {data.spec} {did} and are left out"
    return Part(Subset(data.samples, kept), data.spec), remark


def without_tuning(data: Part, records: Sequence[Mapping[str, Any]], remark: str = "") -> tuple[Part, str]:
    """`data` less the samples that tuned a recipe, by their `records`; the remark goes on where any are left out."""
    for record in records:
        data, more = without_calibration(data, record, did="tuned the recipe")
        remark = "; ".join(filter(None, (remark, more)))
    return data, remark


def _others(data: Part, saved: Mapping[str, Any]) -> tuple[int, ...]:
    """Positions in `data.samples` of those that a record does not name."""
    record = data.record()
    if record["fingerprint"] != saved.get("fingerprint"):
        digests = set(saved.get("digests", ()))
        return tuple(i for i, digest in enumerate(data.samples.digests()) if digest not in digests)
    used = set(range(record["of"]) if saved.get("indices") is None else saved["indices"])
    here = range(record["of"]) if record["indices"] is None else record["indices"]
    return tuple(position for position, index in enumerate(here) if index not in used)


def calibrated_on(samples: Samples, saved: Mapping[str, Any]) -> Part | None:
    """Those of all the samples of a source that calibrated a saved network, or None where they come from elsewhere."""
    if samples.fingerprint() == saved.get("fingerprint"):
        used = range(len(samples)) if saved.get("indices") is None else saved["indices"]
    else:
        places = {digest: i for i, digest in enumerate(samples.digests())}
        used = [places.get(digest, -1) for digest in saved.get("digests", ())]
        if not used or -1 in used:
            return None
    return Part(Subset(samples, tuple(used)), str(saved.get("data", "")))
