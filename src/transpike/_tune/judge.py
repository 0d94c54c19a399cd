"""A recipe, samples -> Trajectory: how far its outputs are from the source's after every step, and for how much."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .._convert import Sited
from .._evaluate import samples_first
from ..calibration import Observed, batch_size, measured
from ..energy import paper_account
from ..errors import ConfigError, DataError
from ..measure import Agreement, Tally
from ..neurons import choose
from ..recipes import Recipe
from .journal import Journal


@dataclass(frozen=True)
class Trajectory:
    """What a recipe gives after each step (index 0 is t = 1).

    error -- of the outputs against the source's, relative and squared (`distance`): finer than agreement, steady on
    few samples, and about additive over sites. same -- samples on which both say the same. energy -- ratio to the
    source, the paper's account, cumulative. spikes -- per neuron, cumulative.
    """

    samples: int
    error: tuple[float, ...]
    same: tuple[int, ...]
    energy: tuple[float, ...]
    spikes: tuple[float, ...]

    @property
    def agreement(self) -> tuple[float, ...]:
        return tuple(count / self.samples for count in self.same)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Trajectory:
        try:
            lists = (tuple(data[name]) for name in ("error", "same", "energy", "spikes"))
            return Trajectory(int(data["samples"]), *lists)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the journal holds a damaged record ({error}); use another file") from error


def distance(source: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum (y - x)^2 and sum x^2 over samples and positions, of outputs without their mean over the last axis where
    that has several (class scores mean the same when all are shifted).

    Arguments: source x [B, ..., C]; outputs y [T, B, ..., C]. Returns: float64 [T] and [].
    """
    x, y = (value.double().nan_to_num(0.0, 0.0, 0.0) for value in (source, outputs))
    if x.shape[-1] > 1:
        x, y = (value - value.mean(-1, keepdim=True) for value in (x, y))
    return (y - x).square().flatten(1).sum(1), x.square().sum()


class Judge:
    """Measures recipes of one placement policy on the judging samples, each once: the rest comes from the journal.

    passes -- how often all samples will be run through the network, a time-step each: decides whether neurons are
    compiled, which changes no number.
    """

    def __init__(
        self, sited: Sited, seen: Observed, batches: Iterable[Any], base: Recipe, journal: Journal, passes: int = 1
    ) -> None:
        self.sited, self.seen, self.journal = sited, seen, journal
        self.batches = list(batches)
        if not self.batches:
            raise DataError("there is no sample to judge settings by; give more calibration samples")
        network = sited.network(base, measured(sited.plan, base, seen, sited.graph))
        self.sources = [samples_first(network, network.source(batch)) for batch in self.batches]
        self.sizes = [batch_size(sited.captured, sited.captured.flatten(batch)) for batch in self.batches]
        self.kernel = choose("auto", passes * sum(self.sizes) * network.neurons_per_sample, network.device)
        self.fingerprint = self._fingerprint()
        self.earlier, self.resumed, self.run = set(journal.records), set[str](), 0

    def __call__(self, recipe: Recipe, *, steps: int, few: int | None = None) -> Trajectory:
        """Arguments: few -- only the first batches that hold this many samples."""
        count = len(self.batches) if few is None else _first(self.sizes, few)
        asked = [self.fingerprint, recipe.to_json(), steps, sum(self.sizes[:count])]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
        if key in self.earlier:
            self.resumed.add(key)
        if key not in self.journal.records:
            self.run += 1
            self.journal.put(key, asdict(self._measure(recipe, steps, count)))
        return Trajectory.from_json(self.journal.records[key])

    def _measure(self, recipe: Recipe, steps: int, count: int) -> Trajectory:
        network = self.sited.network(recipe, measured(self.sited.plan, recipe, self.seen, self.sited.graph))
        noise, signal = torch.zeros(steps, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        score, tally = Agreement(steps), Tally(steps)
        for batch, source in list(zip(self.batches, self.sources, strict=True))[:count]:
            run = network.simulate(batch, steps, kernel=self.kernel)
            outputs = samples_first(network, run.outputs, 1)
            more, of = distance(source, outputs)
            noise, signal = noise + more.cpu(), signal + of.cpu()
            score.update(source, outputs, None)
            tally += run.spikes
        return Trajectory(
            score.samples,
            tuple((noise / signal.clamp(min=1e-300)).tolist()),
            tuple(score.same.tolist()),
            tuple(paper_account(tally, network.plan).ratio.tolist()),
            tuple(tally.spikes_per_neuron().cumsum().tolist()),
        )

    def _fingerprint(self) -> str:
        """Of all that a measurement depends on besides the recipe: versions, weights, both parts of the samples."""
        from .. import __version__

        found = hashlib.sha256(f"{__version__} {torch.__version__} {self.seen.samples}".encode())
        for name, value in self.sited.model.state_dict().items():
            _add(found, name, value)
        for name, histogram in self.seen.histograms.items():
            _add(found, f"{name} {histogram.minimum} {histogram.maximum}", histogram.counts)
        for batch in self.batches:
            for leaf in self.sited.captured.flatten(batch):
                _add(found, "judged", leaf)
        return found.hexdigest()


def _add(found: Any, name: str, value: torch.Tensor) -> None:
    found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _first(sizes: list[int], few: int) -> int:
    """How many batches hold `few` samples."""
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        if total >= few:
            return count
    return len(sizes)


Progress = Callable[[str, int, int], None]  # stage, done, of
