"""SpikingModel, labelled batches -> Evaluation: accuracy, agreement and counts after every step, in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree

from ._execute import batch_axis, is_shared
from ._journal import Journal, identity, open_journal
from ._memory import decided, share
from ._model import SpikingModel
from ._simulate import Run
from .energy import PaperAccount, paper_account
from .errors import ConfigError, DataError
from .group import ALONE, Group
from .measure import Agreement, Tally
from .zoo import digest

MEETING = 2.0  # seconds between two meetings of several processes: at most this much work is lost with a kill


class LabelledBatch(Protocol):
    @property
    def inputs(self) -> Any: ...
    @property
    def labels(self) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class Evaluation:
    """What a set of samples gave: `score` (accuracy and agreement by step), `tally` (spikes and operations), energy;
    how time ran (`mode`) and what computed (`kernel`), as of `Run`."""

    score: Agreement
    tally: Tally
    energy: PaperAccount
    mode: str
    kernel: str


@dataclass(frozen=True)
class Numbered:
    """A batch by its number, or None where no sample of it can be read; failed: (item, error) of each that cannot."""

    number: int
    batch: LabelledBatch | None
    failed: tuple[tuple[str, str], ...] = ()


Read = Callable[[Iterator[int]], Iterator[Numbered]]
Watch = Callable[[Run, torch.Tensor | None], None]


@dataclass
class Outcome:
    """What batches gave, in whole numbers, so that adding them is exact and JSON keeps them to the last digit."""

    score: Agreement
    tally: Tally
    mode: str
    kernel: str
    failed: list[tuple[str, str]]

    def __iadd__(self, other: Outcome) -> Outcome:
        self.score += other.score
        self.tally += other.tally
        self.mode = max(self.mode, other.mode, key=len)  # what says more: that a batch was divided
        # A last batch of few samples, too little work to compile, says nothing of the others.
        self.kernel = max(self.kernel, other.kernel, key=lambda kernel: (kernel.startswith("compiled"), len(kernel)))
        self.failed += other.failed
        return self

    def to_json(self) -> dict[str, Any]:
        counts = {"score": self.score.to_json(), "tally": self.tally.to_json()}
        return {**counts, "mode": self.mode, "kernel": self.kernel, "failed": self.failed}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Outcome:
        failed = [(item, error) for item, error in data["failed"]]
        score, tally = Agreement.from_json(data["score"]), Tally.from_json(data["tally"])
        return Outcome(score, tally, data["mode"], data["kernel"], failed)


def evaluate(
    model: SpikingModel,
    batches: Iterable[LabelledBatch],
    *,
    steps: int,
    mode: str = "auto",
    progress: Callable[[int], None] | None = None,
    journal: str | Path | None = None,
    group: Group = ALONE,
    watch: Watch | None = None,
) -> Evaluation:
    """Run source and spiking model on every batch and count.

    Arguments: batches -- objects with `inputs` (model inputs) and `labels` ([B], [B, ...] with -100 where nothing is
    asked, or None). journal -- a file that keeps what every batch gave; a run that was killed continues there, on the
    same batches in the same order, which are read and compared but not run again. group -- processes that divide the
    batches (`transpike.join()`); each is given all of them and all return the same Evaluation.
    watch -- told of every run and its labels as they come; not with a journal or several processes.
    Raises: DataError when there is no sample; ConfigError for a journal of another run; ProcessError.
    """

    def read(numbers: Iterator[int]) -> Iterator[Numbered]:
        wanted = next(numbers)
        for number, batch in enumerate(batches):
            if number == wanted:
                yield Numbered(number, batch)
                wanted = next(numbers)

    return evaluate_numbered(
        model, read, steps=steps, mode=mode, progress=progress, journal=journal, group=group, about={}, whole=True,
        watch=watch,
    )  # fmt: skip


def evaluate_numbered(
    model: SpikingModel,
    read: Read,
    *,
    steps: int,
    mode: str,
    about: Mapping[str, Any],
    whole: bool = False,
    progress: Callable[[int], None] | None = None,
    on_failure: Callable[[str, Exception], None] | None = None,
    journal: str | Path | None = None,
    group: Group = ALONE,
    watch: Watch | None = None,
) -> Evaluation:
    """As `evaluate`, on batches that `read` gives by ascending number. How much memory a run may take where the model
    does not say is decided once, when it begins, for all processes: batches in other parts round otherwise.

    Arguments: about -- JSON values that name the samples, for the journal. whole -- compare all batches that the
    journal has with those given now, not only the first.
    """
    if watch is not None and (journal is not None or group.count > 1):
        raise ConfigError("runs can only be watched by one process and without a journal; leave the journal out")
    with contextlib.ExitStack() as stack:
        stack.enter_context(group.telling())
        kept = journal is not None
        run = {**identity(model, steps, mode), **about} if kept or group.count > 1 else {}
        group.require_same(run, "weights, thresholds, data or versions")
        now = {"memory": share(model.device)}
        book = stack.enter_context(open_journal(Path(journal), run, now)) if kept and group.main else None
        found = group.exchange([now["memory"], None if book is None else book.found.get("memory")])
        stack.enter_context(decided(min((size for sizes in found for size in sizes if size is not None), default=None)))
        done, total = _saved(book, steps, group)
        again = 0 if book is None else done if whole else min(done, 1)
        shares = _outcomes(model, read, steps, mode, (done, again), book, group, kept, watch)
        _tell(total, progress, on_failure, total.failed)
        for fresh in _rounds(shares, group):
            for entry in fresh:
                if book is not None:
                    book.append(entry)
                outcome = Outcome.from_json(entry)
                total += outcome
                _tell(total, progress, on_failure, outcome.failed)
    if total.score.samples == 0:
        count_failed, first = len(total.failed), next((error for _, error in total.failed), "")
        none = f"none of the {count_failed} samples can be read; the first failure: {first}"
        raise DataError(none if total.failed else "there is no sample to evaluate")
    return Evaluation(total.score, total.tally, paper_account(total.tally, model.plan), total.mode, total.kernel)


def _saved(book: Journal | None, steps: int, group: Group) -> tuple[int, Outcome]:
    """How many batches the journal has and what they gave, the same on every process."""
    total = Outcome(Agreement(steps), Tally(steps), "", "", [])
    entries = book.entries if book is not None else []
    for number, entry in enumerate(entries):
        if entry["batch"] != number:
            raise ConfigError(f"journal {book.path} lacks batch {number}; remove the file to start anew")  # type: ignore[union-attr]
        total += Outcome.from_json(entry)
    done, known = group.exchange([len(entries), total.to_json()])[0]
    return done, Outcome.from_json(known)


def _numbers(done: int, again: int, group: Group) -> Iterator[int]:
    """The batches this process reads: the first `again` to compare them, then its share of those not done."""
    yield from range(again)
    yield from count(done + group.index, group.count)


def _outcomes(
    model: SpikingModel,
    read: Read,
    steps: int,
    mode: str,
    place: tuple[int, int],
    book: Journal | None,
    group: Group,
    kept: bool,
    watch: Watch | None,
) -> Iterator[dict[str, Any]]:
    """What this process's batches give, as entries of the journal."""
    done, again = place
    compared = 0
    for item in read(_numbers(done, again, group)):
        content = _content(item.batch) if kept else ""
        if book is not None and item.number < done:
            _compare(content, item.number, book)
            compared += 1
            continue
        yield {"batch": item.number, "content": content, **_outcome(model, item, steps, mode, watch).to_json()}
    if book is not None and compared < again:
        raise ConfigError(f"journal {book.path} has {again} batches, but now there are only {compared}")


def _rounds(shares: Iterator[dict[str, Any]], group: Group) -> Iterator[list[dict[str, Any]]]:
    """The entries of all processes in ascending order, as often as they meet: after every batch or, where batches are
    quick, after as many as take MEETING seconds, so that nobody waits for the slower one of every pair."""
    turns = 1
    while True:
        started = perf_counter()
        mine = list(islice(shares, turns))
        answers = group.exchange([perf_counter() - started, mine])
        fresh = sorted((entry for _, entries in answers for entry in entries), key=lambda entry: entry["batch"])
        if not fresh:
            return
        yield fresh
        slowest = max(seconds for seconds, _ in answers) / turns
        turns = 1 if group.count == 1 else max(1, min(64, int(MEETING / max(slowest, 1e-9))))


def _outcome(model: SpikingModel, item: Numbered, steps: int, mode: str, watch: Watch | None) -> Outcome:
    score, batch = Agreement(steps), item.batch
    if batch is None:
        return Outcome(score, Tally(steps), "", "", list(item.failed))
    run = model.simulate(batch.inputs, steps, mode=mode)
    labels = None if batch.labels is None else batch.labels.to(run.outputs.device)
    score.update(samples_first(model, model.source(batch.inputs)), samples_first(model, run.outputs, 1), labels)
    if watch is not None:
        watch(run, labels)
    return Outcome(score, run.spikes, run.mode, run.kernel, list(item.failed))


def samples_first(model: SpikingModel, outputs: torch.Tensor, behind: int = 0) -> torch.Tensor:
    """The model's outputs [B, ...], wherever it has its batch; the first `behind` axes, such as time, stay in front.

    Raises: DataError for an output that all samples of a batch have together.
    """
    if is_shared(model.program.result):
        raise DataError("the output has no batch dimension, so there is no prediction for each sample to compare")
    return outputs.movedim((batch_axis(model.program.result) or 0) + behind, behind)


def _content(batch: LabelledBatch | None) -> str:
    """What names the samples of a batch, as the model gets them, and their labels."""
    if batch is None:
        return ""
    leaves = pytree.tree_leaves((batch.inputs, batch.labels))
    return digest((str(i), leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))


def _compare(content: str, number: int, book: Journal) -> None:
    if content != book.entries[number]["content"]:
        raise ConfigError(
            f"journal {book.path} belongs to another run: the samples or labels of batch {number} come out otherwise "
            "now (check data, order, preprocessing and labels); repeat that run's command, or name another file"
        )


def _tell(
    total: Outcome,
    progress: Callable[[int], None] | None,
    on_failure: Callable[[str, Exception], None] | None,
    failed: Iterable[tuple[str, str]],
) -> None:
    for item, error in failed if on_failure is not None else ():
        on_failure(item, DataError(error))
    if progress is not None:
        progress(total.score.samples + len(total.failed))
