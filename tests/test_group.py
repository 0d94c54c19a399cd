"""Several processes give the numbers of one, each sample counted once; what fails in one ends all."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transpike
from transpike import pipeline
from transpike._mark import insert_sites
from transpike.calibration import calibrate
from transpike.cli import main
from transpike.data import Subset, open_data
from transpike.errors import CalibrationError, MissingExtra, ProcessError
from transpike.group import ALONE, Group, join
from transpike.observers import Histogram
from transpike.recipes import differential
from transpike.zoo.digits import load_model

SRC = str(Path(transpike.__file__).resolve().parents[1])
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)


class Table:
    """Where threads that stand for processes meet; the last to come lays out what all brought."""

    def __init__(self, count: int) -> None:
        self.brought: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def meet(self, index: int, value: Any) -> list[Any]:
        self.brought[index] = value
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


class Thread(Group):
    """A member of a group of threads: all of `Group` but the way that bytes travel."""

    table: Table

    def exchange(self, value: Any) -> list[Any]:
        answers = [json.loads(text) for text in self.table.meet(self.index, json.dumps([None, value]))]
        failed = next((error for error, _ in answers if error is not None), None)
        if failed is not None:
            raise ProcessError(failed)
        return [answer for _, answer in answers]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.table.meet(self.index, tensor)).sum(0)

    def tell(self, error: Exception) -> None:
        if not isinstance(error, ProcessError):
            self.table.meet(self.index, json.dumps([str(error), None]))


def in_threads(count: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` gives, or raises, in each of `count` threads."""
    table, results = Table(count), [None] * count

    def body(index: int) -> None:
        member = Thread(index, count)
        object.__setattr__(member, "table", table)
        try:
            results[index] = work(member)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=body, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def images(size: int, split: str = "train") -> torch.Tensor:
    samples = open_data("digits", split=split)
    return torch.stack([samples.fetch(i)[0] for i in range(size)])  # type: ignore[misc]


@pytest.fixture(scope="module")
def snn() -> transpike.SpikingModel:
    return transpike.convert(load_model(), list(images(30).split(7)), "ecmt")


@pytest.fixture(scope="module")
def part() -> pipeline.Part:
    return pipeline.Part(Subset(open_data("digits", split="test"), tuple(range(26))), "digits")


def numbers(result: transpike.Evaluation) -> str:
    return json.dumps([result.score.to_json(), result.tally.to_json(), result.energy.to_json(), result.mode])


@pytest.mark.parametrize("count", [2, 3, 9])
def test_each_sample_counts_once_whatever_the_number_of_processes(
    snn: Any, part: Any, monkeypatch: pytest.MonkeyPatch, count: int, tmp_path: Path
) -> None:
    """7 batches on 2, 3 and 9 processes; then the journal of one process, continued by several, and the reverse."""
    expected = numbers(pipeline.evaluate_on(snn, part, steps=2, batch_size=4))
    sizes: list[int] = []
    original = transpike.SpikingModel.simulate
    monkeypatch.setattr(
        transpike.SpikingModel,
        "simulate",
        lambda self, inputs, *rest, **more: (sizes.append(len(inputs)), original(self, inputs, *rest, **more))[1],
    )

    def work(group: Group) -> str:
        journal = str(tmp_path / "j")
        return numbers(pipeline.evaluate_on(snn, part, steps=2, batch_size=4, group=group, journal=journal))

    assert in_threads(count, work) == [expected] * count
    assert sorted(sizes) == [2, *[4] * 6]
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join(lines[:4]))
    assert in_threads(count, work) == [expected] * count
    assert sorted(sizes) == [2, 2, *[4] * 9] and (tmp_path / "j").read_bytes() == b"".join(lines)
    assert work(ALONE) == expected and len(sizes) == 11


@pytest.fixture(scope="module")
def calibrated() -> Callable[..., transpike.Calibration]:
    """`calibrate` on a graph that is captured once: torch.export does not run in two threads at a time."""
    recipe = differential()
    captured = transpike.capture(load_model(), images(2))
    decided = transpike.plan(captured, recipe.policy)
    marked = insert_sites(captured, decided)
    return lambda batches, **options: calibrate(captured, marked, decided, recipe, batches, **options)


@pytest.mark.parametrize(("count", "cap"), [(2, None), (3, 25), (6, None)])
def test_thresholds_are_those_of_one_process(calibrated: Any, count: int, cap: int | None) -> None:
    """5 batches; of 6 processes one sees nothing."""
    batches = list(images(30).split(7))
    one = calibrated(batches, max_samples=cap)
    assert in_threads(count, lambda group: calibrated(batches, max_samples=cap, group=group)) == [one] * count


def test_what_fails_in_one_fails_in_all(snn: Any, part: Any, calibrated: Any) -> None:
    bad = list(images(28).split(7))
    bad[1] = bad[1] * torch.inf
    errors = in_threads(2, lambda group: calibrated(bad, group=group))
    assert [type(error) for error in errors] == [ProcessError, CalibrationError]
    assert str(errors[0]) == str(errors[1])
    with pytest.raises(CalibrationError, match="no samples"):
        raise in_threads(2, lambda group: calibrated([], group=group))[1]
    changed = load_model()
    changed.head.bias.data += 1
    other = transpike.convert(changed, dict(snn.thresholds), "ecmt", example=images(2))
    errors = in_threads(2, lambda group: pipeline.evaluate_on((snn, other)[group.index], part, steps=1, group=group))
    assert [str(error) for error in errors] == [
        "process 1 has other weights, thresholds, data or versions than process 0; give every process the same"
    ] * 2


def test_histograms_merge_exactly() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 1000)
    values[:4] = torch.tensor([0.0, -0.0, 1e-42, -1e-42])
    whole = Histogram()
    assert whole.update(values)

    def work(group: Group) -> Histogram:
        mine = Histogram()
        mine.update(values[group.index :: group.count])
        mine.merge_all(group.exchange([mine.minimum, mine.maximum]), group.add)
        return mine

    for merged in in_threads(3, work):
        assert torch.equal(merged.counts, whole.counts)
        assert (merged.minimum, merged.maximum) == (whole.minimum, whole.maximum)
    for first, second in ((0.0, -0.0), (-0.0, 0.0)):  # whoever is first
        histogram = Histogram()
        histogram.update(torch.tensor([first]))
        histogram.update(torch.tensor([second]))
        assert [str(histogram.minimum), str(histogram.maximum)] == ["0.0", "0.0"]


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() == ALONE and ALONE.main and ALONE.exchange({"a": 1}) == [{"a": 1}]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"transpike\[distributed\]"):
        join()
    monkeypatch.setattr(sys, "argv", ["transpike", "eval", "digits", "--data", "digits"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


@needs_accelerate
@pytest.mark.parametrize("hooks", [False, True])
def test_a_dispatched_model_is_captured(snn: Any, hooks: bool) -> None:
    """As `device_map` leaves it, on one device: with and without the hooks that move tensors between devices."""
    from accelerate import dispatch_model

    model = load_model()
    names = [name for name, _ in model.named_children()] + [name for name, _ in model.named_parameters(recurse=False)]
    where = dict.fromkeys(names, "cpu") if hooks else {"": "cpu"}
    model = dispatch_model(model, where, main_device="cpu", force_hooks=hooks)
    assert hasattr(model, "_hf_hook") == hooks
    dispatched = transpike.convert(model, list(images(30).split(7)), "ecmt")
    x = images(5, "test")
    assert torch.equal(dispatched.simulate(x, 2).outputs, snn.simulate(x, 2).outputs)


def processes(words: list[str], folder: Path, count: int = 2) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process, started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = []
    for rank in range(count):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "PYTHONPATH": SRC}
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        command = [sys.executable, "-m", "transpike", *words]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes))
    told = [process.communicate(timeout=120) for process in running]
    return [(process.returncode, *texts) for process, texts in zip(running, told, strict=True)]


@needs_accelerate
@pytest.mark.parametrize("variables", [{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "two"}], ids=str)
def test_processes_that_cannot_find_each_other(variables: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")} | variables
    line = [sys.executable, "-m", "transpike", "--version"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: the processes of this run cannot find each other")
    assert "unset these variables" in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


@needs_accelerate
def test_two_processes_write_the_report_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["eval", "digits", "--data", "digits", "--limit=50", "--samples=20", "--steps=2", "--batch-size=4"]
    assert main([*words, "--json", "one.json"]) == 0
    (code, out, err), other = processes([*words, "--json", "two.json", "--journal", "j"], tmp_path)
    assert code == 0, err[-1500:]
    assert "Accuracy by step" in out and "wrote two.json" in err
    assert other[:2] == (0, "") and "wrote" not in other[2]
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    for report in (one, two):
        del report["seconds"], report["command"], report["versions"]  # versions: of what this process has imported, too
    assert one == two and one["samples"] == 30
    assert Path("j").read_bytes().count(b"\n") == 9


@needs_accelerate
def test_an_error_in_one_process_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    x, y = images(16).numpy(), np.arange(16) % 10
    np.savez(tmp_path / "few.npz", x=x / 2)
    np.savez(tmp_path / "bad.npz", x=x, y=np.where(np.arange(16) == 5, 77, y))  # in the batch of process 1
    words = ["eval", "digits", "--data", "bad.npz", "--calibration", "few.npz", "--steps=2", "--batch-size=4"]
    (code, out, err), other = processes([*words, "--json", "r.json"], tmp_path)
    assert (code, out) == (2, "") and other[:2] == (2, ""), err + other[2]
    sentences = [line for line in (err + other[2]).splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and "bad.npz[5] has label 77" in sentences[0]
    assert "Traceback" not in err + other[2] and not (tmp_path / "r.json").exists()
