"""Early exit: the threshold, what it gives, and that stopping for real gives the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from oracle import Block, Mixing
from transpike.cli import main
from transpike.errors import CalibrationError, ConfigError
from transpike.measure import stopping_steps, stopping_threshold

STEPS = 6


class Classes(Block):
    """Scores far enough apart that some samples stop early."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * super().forward(x)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def snn() -> transpike.SpikingModel:
    torch.manual_seed(0)
    return transpike.convert(Classes().double().eval(), [randn(16, 4, 6, seed=1)], "differential")


def random_outputs(samples: int, seed: int = 0) -> torch.Tensor:
    return randn(5, samples, 4, seed=seed).cumsum(0) * 2


@pytest.mark.parametrize("max_change", [0.0, 0.01, 0.1, 0.3, 1.0])
def test_the_threshold_is_the_smallest_that_holds_from_there_on(max_change: float) -> None:
    outputs = random_outputs(200)
    answers = outputs.argmax(-1)
    threshold, changed = stopping_threshold(outputs, max_change)

    def changes(at: float) -> float:
        took = stopping_steps(outputs, at)
        return float((answers[took - 1, torch.arange(200)] != answers[-1]).double().mean())

    assert changes(threshold) == changed <= max_change
    above = [threshold + (1 - threshold) * share for share in np.linspace(0, 1, 50)]
    assert all(changes(at) <= max_change for at in above)
    assert threshold == 0 or changes(np.nextafter(threshold, 0)) > max_change


def test_no_wrong_decision_needs_no_threshold_and_one_step_is_no_choice() -> None:
    settled = torch.eye(4).repeat(5, 1, 1)
    assert stopping_threshold(settled, 0.0) == (0.0, 0.0)
    assert stopping_steps(settled, 0.0).tolist() == [1] * 4
    assert stopping_threshold(random_outputs(9)[:1], 0.0) == (0.0, 0.0)


@pytest.mark.parametrize("recipe", ["ecmt", "differential", "cascade"])
@pytest.mark.parametrize("terms", [2, 3])
def test_stopping_gives_what_the_whole_run_gives(recipe: str, terms: int) -> None:
    torch.manual_seed(0)
    chosen = dataclasses.replace(transpike.recipes.recipe_named(recipe), product_terms=terms)
    snn = transpike.convert(Classes().double().eval(), [randn(16, 4, 6, seed=1)], chosen)
    batch = randn(24, 4, 6, seed=2)
    whole = {mode: snn.simulate(batch, STEPS, mode=mode) for mode in ("folded", "streaming")}
    assert whole["folded"].spikes.by_sample.tolist() == whole["streaming"].spikes.by_sample.tolist()
    run = whole["folded"]
    total = sum(run.spikes.spikes.values())
    assert run.spikes.by_sample.sum(1).tolist() == total.tolist()
    threshold = 0.7
    stopped = transpike.stop_early(snn, batch, steps=STEPS, threshold=threshold)
    took = stopping_steps(run.outputs, threshold)
    assert len(set(took.tolist())) > 1, "else nothing is dropped"
    assert stopped.steps.tolist() == took.tolist()
    assert (stopped.outputs - run.outputs[took - 1, torch.arange(24)]).abs().max() < 1e-10
    for t in range(STEPS):
        running = (took > t).numpy()
        assert sum(counts[t] for counts in stopped.spikes.spikes.values()) == run.spikes.by_sample[t, running].sum()
    one_by_one = [transpike.stop_early(snn, one, steps=STEPS, threshold=threshold) for one in batch.split(1)]
    for layer, counts in stopped.spikes.operations.items():
        assert counts.tolist() == sum(one.spikes.operations[layer] for one in one_by_one).tolist(), layer


def test_stopped_samples_are_not_simulated(snn: transpike.SpikingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    kind = type(next(iter(snn.neurons.values())))
    at_once = kind.at_once  # type: ignore[attr-defined]

    def spy(self: Any, state: Any, t: int, mean_in: torch.Tensor, threshold: Any, *, count: bool) -> Any:
        sizes.append(mean_in.numel())
        return at_once(self, state, t, mean_in, threshold, count=count)

    batch = randn(24, 4, 6, seed=2)
    monkeypatch.setattr(kind, "at_once", spy)
    monkeypatch.setattr("transpike._early_exit.can_rest", lambda model: False)  # or neurons would be asked, too
    stopped = transpike.stop_early(snn, batch, steps=STEPS, threshold=0.7, count=False)
    assert sum(sizes) == snn.neurons_per_sample * int(stopped.steps.sum())
    sizes.clear()
    assert transpike.stop_early(snn, batch, steps=STEPS, threshold=0.0, count=False).steps.tolist() == [1] * 24
    assert sum(sizes) == snn.neurons_per_sample * 24


def test_a_batch_elsewhere_and_masks_of_tokens() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=False, norm_first=True)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return 9 * self.head(self.layer(self.embed(x), src_key_padding_mask=padding).mean(0))

    torch.manual_seed(7)
    padding = torch.zeros(12, 5, dtype=torch.bool)
    padding[::2, 3:] = True
    snn = transpike.convert(TokensFirst().double().eval(), [(randn(5, 12, 3), padding)], "ecmt", batch_dim=1)
    batch = (randn(5, 12, 3, seed=1), padding)
    run = snn.simulate(batch, STEPS)
    took = stopping_steps(run.outputs, 0.5)
    stopped = transpike.stop_early(snn, batch, steps=STEPS, threshold=0.5)
    assert len(set(took.tolist())) > 1
    assert stopped.steps.tolist() == took.tolist()
    assert (stopped.outputs - run.outputs[took - 1, torch.arange(12)]).abs().max() < 1e-10


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_the_table_says_what_the_rule_gives(snn: transpike.SpikingModel, mode: str) -> None:
    batches = [SimpleNamespace(inputs=randn(9, 4, 6, seed=s), labels=torch.arange(9) % 5) for s in (3, 4)]
    batches[1].labels[3:] = -100
    found = transpike.early_exit(
        snn, [randn(60, 4, 6, seed=5)], batches, steps=STEPS, max_changes=(0.2, 0.0), mode=mode
    )
    assert [row.max_change for row in found.rows] == [0.0, 0.2, None]
    assert (found.samples, found.labelled, found.calibration_samples) == (18, 12, 60)
    for row in found.rows[:2]:
        took, right, same, spikes = [], 0, 0, 0
        for batch in batches:
            stopped = transpike.stop_early(snn, batch.inputs, steps=STEPS, threshold=found.threshold(row.max_change))
            last = snn.simulate(batch.inputs, STEPS).outputs[-1].argmax(-1)
            answers = stopped.outputs.argmax(-1)
            took += stopped.steps.tolist()
            right += int((answers == batch.labels).sum())
            same += int((answers == last).sum())
            spikes += sum(int(counts.sum()) for counts in stopped.spikes.spikes.values())
        assert row.mean_steps == pytest.approx(sum(took) / 18)
        assert row.accuracy == pytest.approx(right / 12)
        assert row.agreement == pytest.approx(same / 18)
        assert row.spikes_per_neuron == pytest.approx(spikes / 18 / snn.neurons_per_sample)
    assert found.rows[0].mean_steps > found.rows[1].mean_steps
    assert (found.rows[2].mean_steps, found.rows[2].agreement) == (STEPS, 1.0)
    assert "max change %" in str(found.table()) and "60 calibration samples" in str(found.table())
    assert len(found.to_json()["rows"]) == 3


def test_the_default_device_of_the_user_changes_nothing(snn: transpike.SpikingModel) -> None:
    batch, held_out = randn(8, 4, 6), [SimpleNamespace(inputs=randn(6, 4, 6, seed=3), labels=None)]

    def found() -> str:
        stopped = transpike.stop_early(snn, batch, steps=3, threshold=0.3)
        table = transpike.early_exit(snn, [batch], held_out, steps=3).to_json()
        return json.dumps([stopped.outputs.tolist(), stopped.steps.tolist(), stopped.spikes.to_json(), table])

    expected = found()
    with torch.device("meta"):  # any but that of the model
        assert found() == expected


def test_refusals(snn: transpike.SpikingModel, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(3, 4, 6)
    with pytest.raises(ConfigError, match="threshold of early exit must be from 0 to 1, not 1.5"):
        transpike.stop_early(snn, x, steps=2, threshold=1.5)
    with pytest.raises(ConfigError, match="share of decisions from 0 to 1, not -0.1"):
        transpike.early_exit(snn, [x], [], steps=2, max_changes=(-0.1,))
    with pytest.raises(CalibrationError, match="no calibration samples"):
        transpike.early_exit(snn, [], [], steps=2)
    with pytest.raises(ConfigError, match="no threshold was calibrated for max_change 0.5"):
        transpike.EarlyExit(2, 1, 1, 1, ()).threshold(0.5)
    with pytest.raises(ConfigError, match="leave the journal out"):
        transpike.evaluate(snn, [], steps=2, journal=tmp_path / "j", watch=lambda run, labels: None)
    tokens = transpike.convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval(), [x])
    with pytest.raises(ConfigError, match="a sample of this model has outputs of 4 x 3"):
        transpike.stop_early(tokens, x, steps=2, threshold=0.5)
    monkeypatch.setattr(snn, "precision", "bfloat")
    with pytest.raises(ConfigError, match="precision must be one of float32, .*, not 'bfloat'"):
        transpike.stop_early(snn, x, steps=2, threshold=0.5)


def test_spikes_are_left_out_where_those_of_a_sample_are_not_known() -> None:
    """A layer that reads the mean of the batch has no spikes of a sample, and the others alone would be too few."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mean, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return self.last(torch.relu(x + self.mean(x.mean(0, keepdim=True))))

    torch.manual_seed(0)
    x = randn(6, 6)
    snn = transpike.convert(Mean().double().eval(), [x], "ecmt")
    found = transpike.early_exit(snn, [x], [SimpleNamespace(inputs=x, labels=None)], steps=2)
    assert {row.spikes_per_neuron for row in found.rows} == {None}
    assert "NaN" not in json.dumps(found.to_json()) and "nan" not in str(found.table())


def test_a_model_that_mixes_its_batch_keeps_it_whole() -> None:
    x = randn(6, 4)
    snn = transpike.convert(Mixing().double().eval(), [x])
    with pytest.raises(ConfigError, match="pass batches of one sample"):
        transpike.stop_early(snn, x, steps=2, threshold=0.5)
    assert transpike.stop_early(snn, x[:1], steps=2, threshold=0.5).steps.shape == (1,)


FIXED = """
from torch import nn
class Fixed(nn.Sequential):
    def forward(self, x):
        return super().forward(x * len(list(x)) / len(x))
def make():
    return Fixed(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
"""


def test_a_batch_of_one_size_has_no_spikes_by_sample(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixed_net.py").write_text(FIXED)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((16, 6), dtype=np.float32))
    line = "eval fixed_net:make --data x.npz --steps 2 --batch-size 4 --recipe ecmt --early-exit 0.01 --json r.json"
    assert main(line.split()) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["early_exit"]["rows"]
    assert rows and all(row["spikes_per_neuron"] is None and row["mean_steps"] >= 1 for row in rows)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def say(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        return code, *capsys.readouterr()

    digits = "eval digits --data digits --limit 60 --steps 3 --early-exit"
    code, out, err = say(f"{digits} 0.03 --mode streaming --json r.json")
    assert code == 0 and "Early exit" in out and "steps a sample" in err
    rows = json.loads((tmp_path / "r.json").read_text())["early_exit"]["rows"]
    assert [row["max_change"] for row in rows] == [0, 0.005, 0.01, 0.02, 0.03, 0.05, None]
    assert f"max change 3 %: {rows[4]['mean_steps']:.2f} steps" in err
    refused = {
        f"{digits} 1.5": "--early-exit takes a share from 0 to 1",
        f"{digits} 0.01 --journal j": "--early-exit does not go with a journal",
        "eval net --data digits --early-exit 0.01": "name some with --calibration",
        "eval net --data digits --early-exit 0.01 --samples 3": "is converted already, so --samples cannot change it",
        "eval net --data digits --calibration digits": "converted already, so --calibration cannot change it",
    }
    assert say("convert digits --calibration digits --samples 20 --out net --quiet")[0] == 0
    for line, message in refused.items():
        code, out, err = say(line)
        assert (code, out) == (2, "") and message in err, line
    code, out, _ = say("eval net --data digits --limit 60 --steps 2 --early-exit 0 --calibration digits --samples 20")
    assert code == 0 and "20 calibration samples; evaluated on 60 others" in out
