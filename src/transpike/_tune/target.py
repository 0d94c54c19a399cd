"""What tuning is after, and how two points compare under it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from ..errors import ConfigError
from .judge import Trajectory


@dataclass(frozen=True)
class Target:
    """max_drop -- at least energy, losing at most this many percentage points of agreement with the source; or
    max_energy -- least output error, at most this ratio to the source's energy in the paper's account."""

    max_drop: float | None = None
    max_energy: float | None = None

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.max_energy is None):
            raise ConfigError("tuning takes one target: a largest drop, or a largest energy")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ConfigError(f"the largest drop must be from 0 to 100 percentage points, not {self.max_drop!r}")
        if self.max_energy is not None and not (isfinite(self.max_energy) and self.max_energy > 0):
            raise ConfigError(f"the largest energy must be a positive ratio, not {self.max_energy!r}")

    def misses_by(self, found: Trajectory, t: int) -> float:
        """0 where the target is reached."""
        if self.max_drop is not None:
            lost = found.samples - found.same[t - 1]
            return max(0.0, lost - self.max_drop / 100 * found.samples) if lost else 0.0
        return max(0.0, found.energy[t - 1] - self.max_energy)  # type: ignore[operator]

    def key(self, found: Trajectory, t: int) -> tuple[float, float, float]:
        """The smaller, the better."""
        miss, error, energy = self.misses_by(found, t), found.error[t - 1], found.energy[t - 1]
        return (miss, energy, error) if self.max_drop is not None and not miss else (miss, error, energy)

    def best_step(self, found: Trajectory, steps: tuple[int, ...]) -> int:
        return min(steps, key=lambda t: self.key(found, t))

    def saves(self, found: Trajectory, t: int) -> bool:
        """Whether the way on is to spend less (else it is to err less)."""
        return (self.max_drop is not None) == (self.misses_by(found, t) == 0)

    def __str__(self) -> str:
        if self.max_drop is not None:
            return f"agreement with the source of at least {100 - self.max_drop:g} %"
        return f"energy of at most {self.max_energy:g} of the source's"
