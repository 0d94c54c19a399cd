"""Batches in parts that fit a budget: the same results, and an estimate that follows what torch holds."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import transpike
from oracle import Block, Mixing
from transpike import _memory
from transpike._memory import available, need, parse_size, peak, samples_at_once, tables
from transpike.cli import main
from transpike.errors import ConfigError
from transpike.neurons.differential import TABLES
from transpike.neurons.trajectory import CHUNK
from transpike.products import linear_of_means, refusal


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def snn() -> transpike.SpikingModel:
    torch.manual_seed(0)
    return transpike.convert(Block(width=32, hidden=128).double().eval(), [randn(16, 20, 6, seed=1)], "ecmt")


@pytest.fixture(scope="module")
def approximated() -> transpike.SpikingModel:
    """What GELU makes, by a table, is all there is to it."""
    torch.manual_seed(0)
    return transpike.convert(Block(width=8, hidden=1024).double().eval(), [randn(16, 20, 6, seed=1)], "mbe")


@pytest.fixture(scope="module")
def balanced() -> transpike.SpikingModel:
    torch.manual_seed(0)
    model = transpike.convert(Block(width=32, hidden=128).double().eval(), [randn(16, 20, 6, seed=1)], "balanced")
    assert model.calibration.frames and any(neuron.pulses > 1 for neuron in model.neurons.values())
    return model


class Held(TorchDispatchMode):
    """Bytes of all tensors that operators make while it is active, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            storage = leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None
            if storage is not None and storage.data_ptr() and storage.data_ptr() not in self.sizes:
                self.sizes[storage.data_ptr()] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.data_ptr())
                self.most = max(self.most, self.now)
        return out

    def free(self, address: int) -> None:
        self.now -= self.sizes.pop(address, 0)


def test_a_model_remembers_what_a_run_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through the graph takes as long as a small batch."""
    from transpike import _memory

    asked: list[int] = []
    peak = _memory.peak
    monkeypatch.setattr(_memory, "peak", lambda *args, **how: asked.append(args[2]) or peak(*args, **how))
    torch.manual_seed(0)
    x = randn(2, 20, 6)
    snn = transpike.convert(Block().double().eval(), [x], "ecmt")
    for steps in (2, 2, 3, 2):
        snn.simulate(x, steps)
    assert asked == [2, 2, 3, 3]  # with one sample and with many
    snn.to(torch.float32).simulate(x, 2)
    assert len(asked) == 6, "other weights, other needs"


@pytest.mark.parametrize("recipe", ["ecmt", "balanced", "approximated"])
@pytest.mark.parametrize("mode", ["folded", "streaming"])
@pytest.mark.parametrize("count", [True, False], ids=["counting", "not counting"])
def test_the_estimate_follows_what_torch_holds(
    request: pytest.FixtureRequest, recipe: str, mode: str, count: bool
) -> None:
    model = request.getfixturevalue("snn" if recipe == "ecmt" else recipe)
    x, steps, folded = randn(64, 20, 6), 5, mode == "folded"
    with Held() as held:
        model.simulate(x, steps, mode=mode, count=count, kernel="eager")
    masks, chunk = (2 + (model.recipe.product_terms == 2)) * count, CHUNK if folded else None
    estimate = peak(model.program, 64, steps if folded else 1, masks=masks, neurons=model.neurons, chunk=chunk)
    if not folded:
        estimate += 64 * (8 + (masks > 2)) * model.neurons_per_sample
    assert 0.95 * held.most < estimate < 1.7 * held.most


@pytest.mark.skipif(bool(refusal(torch.device("cpu"))), reason=refusal(torch.device("cpu")))
def test_the_estimate_has_room_for_weights_in_parts() -> None:
    source = torch.nn.Sequential(torch.nn.Linear(8, 128), torch.nn.ReLU(), torch.nn.Linear(128, 256)).eval()
    program = transpike.convert(source, [torch.randn(4, 8)], "ecmt").program
    with Held() as held:
        out = linear_of_means(torch.ones(2, 128), torch.ones(256, 128))
    inputs = 4 * 128 * (2 + 256)
    parts = held.most - inputs - out.nbytes
    assert parts == 6 * 128 * 256
    assert parts < peak(program, 2, 1, chunk=1) < 1.2 * parts


def test_the_estimate_has_room_for_lower_precision() -> None:
    """Autocast keeps weights in bfloat16; three products have both operands in three parts."""
    torch.manual_seed(0)
    source = torch.nn.Sequential(torch.nn.Linear(8, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512)).eval()
    model = transpike.convert(source, [torch.randn(4, 8)], "ecmt")
    fixed, each = need(model, steps=2, folded=True, count=False)
    rounded, _ = need(model, steps=2, folded=True, count=False, precision="bfloat16")
    assert rounded - fixed == 2 * sum(weight.numel() for weight in source.parameters())
    assert need(model, steps=2, folded=True, count=False, precision="bfloat16x3")[1] > 2 * each
    for precision, copies, kept in (("bfloat16", 2, rounded - fixed), ("bfloat16x3", 18, 0)):
        with Held() as held:
            model.simulate(torch.randn(600, 8), 2, mode="folded", count=False, kernel="eager", precision=precision)
        assert held.most < kept + peak(model.program, 600, 2, neurons=model.neurons, copies=copies) < 1.7 * held.most
        with pytest.raises(ConfigError, match="one sample takes"):
            model.simulate(torch.randn(1, 8), 2, precision=precision, mode="folded", max_memory=fixed)


def test_the_estimate_has_room_for_tables(balanced: transpike.SpikingModel) -> None:
    """By which neurons that fire several times in a step look up what they say."""
    found = {id(table): table for table in TABLES.held.values() if table is not None and table.said.dtype.itemsize == 8}
    assert 0 < tables(balanced) <= sum(table.nbytes for table in found.values())
    assert need(balanced, steps=1, folded=True, count=False)[0] >= _memory.OVERHEAD + tables(balanced)


def test_a_system_without_the_entry_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    with pytest.raises(IndexError):  # which `available` takes for no answer
        _memory._number(str(tmp_path / "meminfo"), "MemAvailable:")


def test_an_estimate_grows_with_samples_and_folded_steps(snn: transpike.SpikingModel) -> None:
    assert peak(snn.program, 8, 4) == pytest.approx(2 * peak(snn.program, 4, 4), rel=0.01)
    four, sixteen = (need(snn, steps=steps, folded=True, count=True)[1] for steps in (4, 16))
    assert 2.5 < sixteen / four < 4.1
    two, many = (need(snn, steps=steps, folded=False, count=True) for steps in (2, 32))
    outputs = 30 * int(np.prod(snn.simulate(randn(1, 20, 6), 1).outputs.shape)) * 8
    assert (two[0], two[1] + outputs) == many, "what is kept of every step is the output"


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_parts_give_what_the_whole_gives(snn: transpike.SpikingModel, mode: str) -> None:
    x = randn(10, 20, 6, seed=3)
    whole = snn.simulate(x, 4, mode=mode)
    fixed, each = need(snn, steps=4, folded=mode == "folded", count=True)
    parts = snn.simulate(x, 4, mode=mode, max_memory=fixed + 3 * each + 1)
    assert (whole.mode, parts.mode) == (mode, f"{mode}, 3 samples at once")
    assert (parts.outputs - whole.outputs).abs().max() < 1e-10
    assert parts.spikes.to_json() == whole.spikes.to_json()
    assert parts.spikes.by_sample.tolist() == whole.spikes.by_sample.tolist()  # type: ignore[union-attr]
    assert snn.simulate(x, 4, mode=mode, max_memory=fixed + 10 * each + 1).mode == mode


def test_parts_are_even(snn: transpike.SpikingModel) -> None:
    fixed, each = need(snn, steps=4, folded=True, count=True)

    def at_once(samples: int, fitting: int) -> int:
        budget = fixed + fitting * each + 1
        return samples_at_once(snn, samples, steps=4, folded=True, count=True, budget=budget)

    assert [at_once(9, 8), at_once(8, 8), at_once(100, 30), at_once(1, 5)] == [5, 8, 25, 1]


def test_by_default_half_of_what_is_available(snn: transpike.SpikingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (available(torch.device("cpu")) or 1 << 30) > 1 << 20
    fixed, each = need(snn, steps=4, folded=True, count=True)
    monkeypatch.setattr("transpike._memory.available", lambda device: 2 * (fixed + 2 * each + 1))
    assert snn.simulate(randn(5, 20, 6), 4).mode == "folded, 2 samples at once"
    monkeypatch.setattr("transpike._memory.available", lambda device: 1)
    assert snn.simulate(randn(2, 20, 6), 4).mode == "folded, 1 samples at once"
    monkeypatch.setattr("transpike._memory.available", lambda device: None)
    assert snn.simulate(randn(2, 20, 6), 4).mode == "folded"


def test_refusals(snn: transpike.SpikingModel) -> None:
    fixed, _ = need(snn, steps=4, folded=True, count=True)
    for budget, shown, advice in ((1000, "1 KB", "raise it"), (fixed + 1000, "67 MB", "lower steps, or use streaming")):
        with pytest.raises(ConfigError, match=f"one sample takes .* MB, which is more than the {shown} .*; {advice}"):
            snn.simulate(randn(2, 20, 6), 4, max_memory=budget)
    for wrong in (0, -1, 1.5, True, "4GB"):
        with pytest.raises(ConfigError, match="max_memory must be a whole number of bytes"):
            snn.simulate(randn(2, 20, 6), 4, max_memory=wrong)  # type: ignore[arg-type]


def test_a_batch_that_cannot_be_divided_fits_or_is_refused() -> None:
    x = torch.randn(6, 4)
    mixing = transpike.convert(Mixing().eval(), [x], "ecmt")
    assert mixing.simulate(x, 2, max_memory=10**9).mode == "streaming"
    with pytest.raises(ConfigError, match="a batch of 6 takes about .* MB, which is more than the 1 MB of max_memory"):
        mixing.simulate(x, 2, max_memory=10**6)


def test_the_source_and_early_exit_run_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    classes = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3)).double().eval()
    x = randn(10, 6)
    model = transpike.convert(classes, [x], "ecmt")
    whole, stopped = model.source(x), transpike.stop_early(model, x, steps=4, threshold=0.5)
    sizes: list[int] = []
    classes.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    fixed, each = need(model, steps=1, folded=True, count=False)
    model.max_memory = fixed + 3 * each + 1
    assert (model.source(x) - whole).abs().max() < 1e-12 and sizes == [3, 3, 3, 1]
    fixed, each = need(model, steps=4, folded=False, count=True)
    model.max_memory = fixed + 3 * each + 1
    ran: list[int] = []
    parts_of = _memory.pieces
    monkeypatch.setattr(_memory, "pieces", lambda *given: [ran.append(len(p[0])) or p for p in parts_of(*given)])
    parts = transpike.stop_early(model, x, steps=4, threshold=0.5)
    assert ran == [3, 3, 3, 1]
    assert torch.equal(parts.steps, stopped.steps) and (parts.outputs - stopped.outputs).abs().max() < 1e-12
    assert parts.spikes.to_json() == stopped.spikes.to_json()
    assert parts.spikes.by_sample.tolist() == stopped.spikes.by_sample.tolist()  # type: ignore[union-attr]
    model.max_memory = 1000
    with pytest.raises(ConfigError, match="one sample takes"):
        transpike.stop_early(model, x, steps=4, threshold=0.5)


def test_sizes() -> None:
    found = [parse_size(text) for text in ("4GB", "500 mb", "1.5GiB", "2KiB", "2 TB")]
    assert found == [4 * 10**9, 500 * 10**6, 3 << 29, 2048, 2 * 10**12]
    for wrong in ("", "4", "GB", "4 PB", "9" * 400 + "GB", "-1GB", "0MB", "4GBs", "nan GB"):
        with pytest.raises(ConfigError, match="such as 500MB or 4GB"):
            parse_size(wrong)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["eval", "digits", "--data", "digits", "--limit", "60", "--steps", "3"]
    assert main(line) == 0
    whole = capsys.readouterr().out
    assert main([*line, "--max-memory", "80MB"]) == 0
    assert capsys.readouterr().out == whole
    assert main([*line, "--max-memory", "4"]) == 2
    assert "error: --max-memory: a size of memory" in capsys.readouterr().err
