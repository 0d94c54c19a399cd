"""The vocabulary every room shares. Frozen values, no behaviour beyond reading themselves.

Words: a *site* is a tensor that gets a neuron; a *layer* is an operator that multiplies (a weight layer or a product of
two signals) and reads sites; a *step* is one of the T time-steps; a *spike* is a non-zero emitted amplitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from .errors import ConfigError


class Provenance(StrEnum):
    """Where a value comes from. This, not a name, decides what an operator means."""

    CONSTANT = "constant"  # parameters, buffers, literals: the same for every input
    CONTROL = "control"  # from masks, ids or positions: differs by input, never spikes
    SIGNAL = "signal"  # carries activations


class Role(StrEnum):
    """What an operator does to running means (DESIGN: every role but UNKNOWN is exact on means)."""

    CONSTANT = "constant"  # touches no signal; evaluated as it is
    STRUCTURAL = "structural"  # moves values without arithmetic
    AFFINE = "affine"  # linear in its one signal, element by element or by averaging: exact on means
    WEIGHT = "weight"  # signal times constant weights: a linear or convolution layer, computed from spikes
    PRODUCT = "product"  # signal times signal, computed from spikes
    NONLINEAR = "nonlinear"  # kept by expectation compensation: t F(M(t)) - (t-1) F(M(t-1))
    UNKNOWN = "unknown"  # no rule


class SiteKind(StrEnum):
    """What a site feeds; recipes choose levels and thresholds by kind."""

    LINEAR = "linear"
    CONV = "conv"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    SOFTMAX = "softmax"
    PRODUCT = "product"


@dataclass(frozen=True)
class Operand:
    """One factor of a layer: which graph value it reads, through which site (None: analog or constant)."""

    node: str
    site: str | None


@dataclass(frozen=True)
class Layer:
    """A multiplying operator: `node` in the graph, its module path, role, and two factors."""

    name: str
    node: str
    module: str
    op: str
    role: Role
    operands: tuple[Operand, ...]
    signals: tuple[bool, ...]  # which operands carry a signal
    reason: str = ""  # why it stays analog, when it does

    @property
    def signal_position(self) -> int:
        """The operand of a weight layer that is not the weight."""
        return self.signals.index(True)

    @property
    def spiking(self) -> bool:
        return any(operand.site is not None for operand in self.operands)


@dataclass(frozen=True)
class Site:
    """A tensor that gets a neuron. `shape` has None where the batch is; `reads` are the (layer, operand) it feeds."""

    name: str
    kind: SiteKind
    node: str
    shape: tuple[int | None, ...]
    batch_axis: int | None
    reads: tuple[tuple[str, int], ...]

    @property
    def neurons(self) -> int:
        """Neurons per sample. A merged batch axis (batch x windows) is counted by `convert`, which sees real sizes."""
        count = 1
        for size in self.shape:
            count *= 1 if size is None else size
        return count


@dataclass(frozen=True)
class Threshold:
    """What calibration finds for one site: the base amplitude of each sign, in units of the activation.

    Whether the base is the largest level (paper) or the smallest (published code) is the neuron's affair.
    0 means: no level of that sign.
    """

    positive: float
    negative: float

    def __post_init__(self) -> None:
        pair = (self.positive, self.negative)
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and isfinite(v) for v in pair):
            raise ConfigError(f"a threshold must be two finite numbers, not {pair!r}")

    def to_json(self) -> list[float]:
        return [self.positive, self.negative]
