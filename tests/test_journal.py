"""A run that was killed, at whatever moment, continues and ends with the numbers of an undisturbed one."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import torch

import transpike
from transpike import pipeline
from transpike._evaluate import Outcome, evaluate
from transpike._journal import open_journal
from transpike._memory import decided, need
from transpike.cli import console, main
from transpike.data import Batch, Subset, open_data
from transpike.data.folder import open_folder
from transpike.data.preprocess import Preprocess
from transpike.data.samples import Samples
from transpike.errors import ConfigError, DataError
from transpike.measure import Agreement, Tally
from transpike.zoo.digits import load_model

STEPS, SIZE, SAMPLES = 3, 6, 40  # 7 batches, the last of 4 samples
SRC = str(Path(transpike.__file__).resolve().parents[1])


class Stop(Exception):
    """Where a run is stopped."""


class Unreadable:
    """Samples some of which cannot be read."""

    def __init__(self, parent: Samples, broken: set[int]) -> None:
        self.parent, self.broken = parent, broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parent, name)

    def __len__(self) -> int:
        return len(self.parent)

    def fetch(self, i: int) -> Any:
        if i in self.broken:
            raise OSError(f"bad sector {i}")
        return self.parent.fetch(i)


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """The same at every moment, so that journals are the same to the last byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transpike._memory.available", lambda device: 1 << 40)
        yield


@pytest.fixture(scope="module")
def snn() -> transpike.SpikingModel:
    train = open_data("digits", split="train")
    return transpike.convert(load_model(), [torch.stack([train.fetch(i)[0] for i in range(32)])], "ecmt")


@pytest.fixture(scope="module")
def part() -> pipeline.Part:
    return pipeline.Part(Subset(open_data("digits", split="test"), tuple(range(SAMPLES))), "digits")


def run(snn: Any, part: pipeline.Part, journal: Path | None = None, **changes: Any) -> transpike.Evaluation:
    options = {"steps": STEPS, "batch_size": SIZE, **changes}
    return pipeline.evaluate_on(snn, part, journal=None if journal is None else str(journal), **options)


def numbers(result: transpike.Evaluation) -> str:
    """Every number as text, so that a difference in the last digit, in a type or in the order shows."""
    return json.dumps([result.score.to_json(), result.tally.to_json(), result.energy.to_json(), result.mode])


def simulated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are simulated from now on."""
    sizes: list[int] = []
    original = transpike.SpikingModel.simulate

    def simulate(self: Any, inputs: torch.Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(len(inputs))
        return original(self, inputs, *rest, **options)

    monkeypatch.setattr(transpike.SpikingModel, "simulate", simulate)
    return sizes


def stopping_after(batches: int) -> Any:
    calls = []

    def progress(done: int) -> None:
        calls.append(done)
        if len(calls) > batches:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def whole(snn: Any, part: pipeline.Part, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The numbers of a run without a journal, and the journal of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "journal"
    expected = numbers(run(snn, part))
    assert numbers(run(snn, part, path)) == expected
    return expected, path.read_bytes()


@pytest.mark.parametrize("stops", [(0,), (1,), (3, 2), (7,), (2, 0, 1, 3)])
def test_a_stopped_run_continues(
    snn: Any, part: Any, whole: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple
) -> None:
    sizes = simulated(monkeypatch)
    for batches in stops:
        with pytest.raises(Stop):
            run(snn, part, tmp_path / "j", progress=stopping_after(batches))
    told: list[int] = []
    assert numbers(run(snn, part, tmp_path / "j", progress=told.append)) == whole[0]
    assert (tmp_path / "j").read_bytes() == whole[1], "the journal is that of an undisturbed run"
    assert sum(sizes) == SAMPLES, "no batch is simulated twice"
    assert told[0] == min(SIZE * sum(stops), SAMPLES) and told[-1] == SAMPLES


def test_batches_are_divided_as_when_the_run_began(
    snn: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other parts float32 rounds otherwise; memory comes and goes while a run lasts. In smaller ones where there is
    less memory now."""
    limits: list[int] = []
    monkeypatch.setattr("transpike._evaluate.decided", lambda limit: limits.append(limit) or decided(limit))  # type: ignore[func-returns-value]
    fixed, each = need(snn, steps=STEPS, folded=True, count=True)

    def fitting(*samples: int) -> list[int]:
        sizes = iter((*samples, *[100] * 50))
        asked: list[int] = []
        monkeypatch.setattr(
            "transpike._memory.available",
            lambda device: asked.append(1) or 2 * (fixed + next(sizes) * each + 1),  # type: ignore[func-returns-value]
        )
        return asked

    asked = fitting(4)
    expected = run(snn, part)
    assert expected.mode == "folded, 3 samples at once" and len(asked) == 1
    fitting(4)
    with pytest.raises(Stop):
        run(snn, part, tmp_path / "j", progress=stopping_after(3))
    begun = (tmp_path / "j").read_bytes()
    fitting(100)
    assert numbers(run(snn, part, tmp_path / "j")) == numbers(expected)
    (tmp_path / "j").write_bytes(begun)
    fitting(1)  # with more the run would be killed again
    run(snn, part, tmp_path / "j")
    assert limits[0] == limits[1] == limits[2] == fixed + 4 * each + 1 and limits[3] == fixed + each + 1
    fitting(1)
    assert snn.simulate(torch.zeros(2, 1, 8, 8), STEPS).mode == "folded, 1 samples at once", "no longer than the run"


def test_a_finished_journal_gives_the_numbers_at_once(
    snn: Any, part: Any, whole: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "j").write_bytes(whole[1])
    sizes = simulated(monkeypatch)
    assert numbers(run(snn, part, tmp_path / "j")) == whole[0]
    assert sizes == [] and (tmp_path / "j").read_bytes() == whole[1]


@pytest.mark.parametrize("kept", [0, 1, 0.0001, 0.02, 0.5, 0.93, 0.9999])
def test_a_torn_last_line_is_ignored(
    snn: Any, part: Any, whole: tuple[str, bytes], tmp_path: Path, kept: float
) -> None:
    """Cut anywhere, within the first line too, or at the end of a file that power loss filled with zeros."""
    torn = whole[1][: kept if isinstance(kept, int) else int(kept * len(whole[1]))]
    for tail in (b"",) if len(torn) < 5000 else (b"", b"\0" * 100, b"\0" * 9 + b"\n"):
        (tmp_path / "j").write_bytes(torn + tail)
        assert numbers(run(snn, part, tmp_path / "j")) == whole[0]
        assert (tmp_path / "j").read_bytes() == whole[1]


def test_a_damaged_line_before_the_last_is_refused(
    snn: Any, part: Any, whole: tuple[str, bytes], tmp_path: Path
) -> None:
    lines = whole[1].splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"samples": 6', b'"samples": 7', 1)
    (tmp_path / "j").write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match="line 4 of journal .*j is damaged"):
        run(snn, part, tmp_path / "j")
    (tmp_path / "j").write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(ConfigError, match="lacks batch 2"):
        run(snn, part, tmp_path / "j")


@pytest.mark.parametrize("content", [b"my thesis", b'{"accuracy": 1}\n', b'{"sha256": "0", "entry": {}}\n', b"\n"])
def test_a_file_that_is_no_journal_is_left_as_it_is(snn: Any, part: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(ConfigError, match="is not a journal of transpike"):
        run(snn, part, tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == content


def other_weights(snn: Any) -> Any:
    model = load_model()
    model.head.bias.data[3] += 2**-20
    return transpike.convert(model, dict(snn.thresholds), "ecmt", example=torch.zeros(2, 1, 8, 8))


def other_threshold(snn: Any) -> Any:
    changed = copy.copy(snn)
    name = next(iter(snn.thresholds))
    thresholds = {**snn.thresholds, name: transpike.Threshold(0.125, 0.5)}
    changed.calibration = replace(snn.calibration, thresholds=thresholds)
    return changed


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (None, {"steps": 4}, r"run: steps \(3 there, 4 here\);"),
        (None, {"batch_size": 8}, r"run: batch size \(6 there, 8 here\);"),
        (None, {"mode": "streaming"}, r"run: mode \(auto there, streaming here\);"),
        (other_weights, {}, "run: other weights;"),
        (other_threshold, {}, r"run: thresholds.*\(\[.*\] there, \[0.125, 0.5\] here\);"),
    ],
)
def test_a_journal_of_another_run_is_refused(
    snn: Any, part: Any, whole: tuple[str, bytes], tmp_path: Path, change: Any, options: dict, words: str
) -> None:
    (tmp_path / "j").write_bytes(whole[1])
    with pytest.raises(ConfigError, match=words) as refused:
        run(snn if change is None else change(snn), part, tmp_path / "j", **options)
    assert "\n" not in str(refused.value) and (tmp_path / "j").read_bytes() == whole[1]


def test_other_samples_are_refused(snn: Any, part: Any, whole: tuple[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(whole[1])
    reversed_part = pipeline.Part(Subset(part.samples.parent, part.samples.indices[::-1]), "digits")
    with pytest.raises(ConfigError, match=r"run: other data\.indices;"):
        run(snn, reversed_part, tmp_path / "j")

    class Prepared(Unreadable):  # the same files, otherwise preprocessed
        def fetch(self, i: int) -> Any:
            inputs, label = self.parent.fetch(i)
            return inputs * 0.5, label

    prepared = pipeline.Part(Subset(Prepared(part.samples.parent, set()), part.samples.indices), "digits")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="samples or labels of batch 0 come out otherwise"):
        run(snn, prepared, tmp_path / "j")


def test_two_runs_do_not_write_one_journal(snn: Any, part: Any, tmp_path: Path) -> None:
    def second(done: int) -> None:
        run(snn, part, tmp_path / "j")

    with pytest.raises(ConfigError, match="j is in use by another run"):
        run(snn, part, tmp_path / "j", progress=second)
    with pytest.raises(ConfigError, match="cannot write the journal"):
        run(snn, part, tmp_path)


def test_a_journal_that_cannot_be_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "digits", "--data", "digits", "--journal", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write --journal")
    (tmp_path / "thesis").write_text("my thesis")
    assert main(["eval", "digits", "--data", "digits", "--limit", "8", "--journal", str(tmp_path / "thesis")]) == 2
    assert "is not a journal of transpike" in capsys.readouterr().err.replace("\n", " ")


def test_the_same_files_read_otherwise_are_another_run(tmp_path: Path) -> None:
    """Also where the first batch does not show it."""
    image = pytest.importorskip("PIL.Image")
    for label in ("0", "1"):
        (tmp_path / label).mkdir()
        image.new("L", (8, 8)).save(tmp_path / label / f"{label}.png")
    usual = Preprocess(None, (0.5,), (0.5,), "bicubic", 1.0, "center")
    found = [
        pipeline._about(pipeline.Part(open_folder(tmp_path, preprocess=preprocess, labels=labels, split=""), "images"))
        for preprocess in (usual, replace(usual, mean=(0.25,)))
        for labels in ("auto", "none")
    ]
    assert len({json.dumps(about) for about in found}) == 4
    assert len({about["fingerprint"] for about in found}) == 1


def test_a_full_disk_is_told_with_what_is_kept(tmp_path: Path) -> None:
    """What was not written would be flushed once more when the file is closed."""
    with pytest.raises(ConfigError, match="the batches before are kept"), open_journal(tmp_path / "j", {}) as journal:
        journal.file = open("/dev/full", "wb")  # noqa: SIM115 -- closed by append
        journal.append({"batch": 0})


def test_samples_that_cannot_be_read_stay_told(snn: Any, part: Any, tmp_path: Path) -> None:
    """Two of one batch, and one batch altogether: skipped, remembered, in order, and not tried again."""
    broken = {7, 9, *range(12, 18)}
    spoilt = pipeline.Part(Unreadable(part.samples, broken), "digits")  # type: ignore[arg-type]
    told: list[tuple[str, str]] = []
    expected = run(snn, spoilt, on_failure=lambda item, error: told.append((item, str(error))))
    assert told == [(f"digits/test[{i}]", f"bad sector {i}") for i in sorted(broken)]
    assert expected.score.samples == SAMPLES - len(broken)
    with pytest.raises(Stop):
        run(snn, spoilt, tmp_path / "j", progress=stopping_after(4))
    again: list[tuple[str, str]] = []
    continued = run(snn, spoilt, tmp_path / "j", on_failure=lambda item, error: again.append((item, str(error))))
    assert numbers(continued) == numbers(expected) and again == told
    with pytest.raises(DataError, match="none of the 40 samples can be read; the first failure: bad sector 0"):
        run(snn, pipeline.Part(Unreadable(part.samples, set(range(SAMPLES))), "digits"))  # type: ignore[arg-type]


def test_batches_of_the_caller_are_compared(snn: Any, part: Any, tmp_path: Path, monkeypatch: Any) -> None:
    rows = [part.samples.fetch(i) for i in range(SAMPLES)]
    whole = [
        Batch(torch.stack([x for x, _ in rows[i : i + 8]]), torch.tensor([y for _, y in rows[i : i + 8]]), ())
        for i in range(0, SAMPLES, 8)
    ]
    path = tmp_path / "j"
    expected = numbers(evaluate(snn, whole, steps=2))
    with pytest.raises(Stop):
        evaluate(snn, whole, steps=2, journal=path, progress=stopping_after(3))
    changed = [*whole[:2], Batch(whole[2].inputs, whole[2].labels.flip(0), ()), *whole[3:]]
    with pytest.raises(ConfigError, match="samples or labels of batch 2 come out otherwise"):
        evaluate(snn, changed, steps=2, journal=path)
    with pytest.raises(ConfigError, match="has 3 batches, but now there are only 2"):
        evaluate(snn, whole[:2], steps=2, journal=path)
    sizes = simulated(monkeypatch)
    assert numbers(evaluate(snn, iter(whole), steps=2, journal=path)) == expected
    assert sizes == [8, 8]


@pytest.mark.parametrize("few", ["eager (too little work to compile)", ""])
def test_a_short_last_batch_does_not_name_the_kernel(few: str) -> None:
    many = "compiled, 3 linear layers in parts"
    for kernels in ((many, few), (few, many)):
        total = Outcome(Agreement(1), Tally(1), "", "", [])
        for kernel in kernels:
            total += Outcome(Agreement(1), Tally(1), "folded", kernel, [])
        assert (total.kernel, total.mode) == (many, "folded")


def test_counts_survive_json(snn: Any, part: Any) -> None:
    result = run(snn, part)
    for value, kind in ((result.score, Agreement), (result.tally, Tally)):
        back = kind.from_json(json.loads(json.dumps(value.to_json())))
        assert back.to_json() == value.to_json() and list(back.to_json()) == list(value.to_json())
    double = Agreement.from_json(result.score.to_json())
    double += result.score
    assert double.samples == 2 * SAMPLES and double.accuracy == result.score.accuracy
    with pytest.raises(ValueError, match="steps"):
        double += Agreement(STEPS + 1)
    assert np.array_equal(double.right, 2 * result.score.right) and double.right.dtype == np.int64


def test_rate_and_time_left_are_of_this_session(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = rich.console.Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(console, "errors", screen)
    clock = iter(range(0, 100_000, 10))  # every look at the clock is ten seconds later
    bars: list[Any] = []
    original = rich.progress.Progress

    def watched(*columns: Any, **options: Any) -> Any:
        bars.append(original(*columns, **options, get_time=lambda: float(next(clock)), auto_refresh=False))
        return bars[0]

    monkeypatch.setattr(rich.progress, "Progress", watched)
    with console.progress("simulating", 1000, resumes=True) as advance:
        for done in (900, 910, 920, 930):
            advance(done)
        task = bars[0].tasks[0]
        assert task.completed == 930 and 0 < task.speed <= 1, "10 samples in at least 10 seconds each"
        assert console.Rate().render(task).plain.endswith(("/s", "/min"))
        assert task.time_remaining >= 70
    assert "900 of 1000 samples were done before" in screen.file.getvalue()  # type: ignore[attr-defined]


def stopped_at(line: int, command: list[str], journal: Path, environment: dict[str, str]) -> None:
    """Start the command and kill it, without a warning, once the journal has that many lines and some moments more."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < line:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(random.Random(line).uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX systems")
def test_kill_9_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "eval",
        "digits",
        "--data",
        "digits",
        "--limit",
        "160",
        "--samples",
        "20",
        "--steps",
        "8",
        "--batch-size",
        "2",
    ]
    assert main([*words, "--json", "whole.json"]) == 0
    command = [sys.executable, "-m", "transpike", *words, "--journal", "j", "--json", "again.json"]
    environment = {**os.environ, "PYTHONPATH": SRC, "OMP_NUM_THREADS": "1"}
    for line in (9, 31):
        stopped_at(line, command, tmp_path / "j", environment)
    assert not Path("again.json").exists()
    assert main([*words, "--journal", "j", "--json", "again.json"]) == 0
    whole, again = (json.loads(Path(name).read_text()) for name in ("whole.json", "again.json"))
    for report in (whole, again):
        del report["seconds"], report["command"]
    assert again == whole and whole["samples"] == 140
