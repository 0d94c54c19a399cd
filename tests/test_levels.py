"""Spikes by level: the command's table, numbers and picture, against counting emitted values one by one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transpike
from transpike._levels import LevelCounts, count_levels
from transpike.cli import main
from transpike.errors import ConfigError, DataError
from transpike.neurons import Neuron
from transpike.recipes import RECIPES
from transpike.report.levels_picture import level_grid, levels_picture
from transpike.zoo.digits import load_digits, load_model

STEPS = 3


@dataclass
class Heard:
    """A neuron that remembers every value it emits, [step -> value -> how often]."""

    code = "none"  # that rests: a neuron that is only asked would be heard
    neuron: Neuron
    steps: list[Counter[float]] = field(default_factory=lambda: [Counter() for _ in range(STEPS)])

    @property
    def pulses(self) -> int:
        return self.neuron.pulses

    def step(self, state: Any, t: int, *rest: Any) -> Any:
        found = self.neuron.step(state, t, *rest)
        self.steps[t - 1].update(value for value in found[2].flatten().tolist() if value != 0)
        return found


def heard(snn: transpike.SpikingModel, images: torch.Tensor) -> dict[str, list[Counter[float]]]:
    ears = {site: Heard(neuron) for site, neuron in snn.neurons.items()}
    before, snn.neurons = snn.neurons, ears  # type: ignore[assignment]
    for image in images:  # one by one: another batch size than the command's
        snn.simulate(image[None], STEPS, mode="streaming", count=False)
    snn.neurons = before
    return {site: ear.steps for site, ear in ears.items()}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("cascade", "fas", "qcfs")])  # same neurons
def test_the_command_counts_what_neurons_emit(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_model().double()  # where one batch size rounds as the other
    images = torch.from_numpy(load_digits("test")[0][:10]).double().unsqueeze(1) / 16
    snn = transpike.convert(model, [images], recipe)
    snn.save_pretrained("net")
    np.savez("ten.npz", x=images.numpy(), y=np.zeros(10, np.int64))
    line = f"layers net --data ten.npz --steps {STEPS} --batch-size 4 --levels --json l.json --report ."
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert "Share of spikes by level" in out and "wrote levels.png" in err
    found = json.loads(Path("l.json").read_text())["levels"]
    assert (found["samples"], found["steps"]) == (10, STEPS) and found["sites"].keys() == snn.neurons.keys()
    for site, steps in heard(snn, images).items():
        amplitudes, spikes = found["sites"][site]["amplitudes"], found["sites"][site]["spikes"]
        assert amplitudes == sorted(set(amplitudes)) and 0 not in amplitudes
        for counts, said in zip(steps, spikes, strict=True):
            assert dict(counts) == {a: n for a, n in zip(amplitudes, said, strict=True) if n}, site
    assert Path("levels.png").read_bytes()[:4] == b"\x89PNG"


def test_without_the_option_nothing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transpike._levels.count_levels", lambda *rest, **more: pytest.fail("counted"))
    assert main(["convert", "digits", "--calibration", "digits", "--samples", "16", "--out", "net", "--quiet"]) == 0
    assert main(["layers", "net", "--data", "digits", "--limit", "4", "--steps", "1", "--json", "l.json"]) == 0
    assert json.loads(Path("l.json").read_text())["levels"] is None
    assert "by level" not in capsys.readouterr().out


def test_nan_is_no_silence() -> None:
    images = torch.rand(4, 1, 8, 8)
    snn = transpike.convert(load_model(), [images], "ecmt")
    images[1, 0, 2, 2] = torch.nan
    with pytest.raises(DataError, match="received NaN or infinity"):
        count_levels(snn, images, steps=1)


def test_the_picture_has_a_column_for_each_level() -> None:
    images = torch.from_numpy(load_digits("test")[0][:6]).float().unsqueeze(1) / 16
    counts = count_levels(transpike.convert(load_model(), [images], "ecmt"), images, steps=2)
    columns, grid = level_grid(counts)
    assert columns == [*((-1, k) for k in range(8)), *((1, k) for k in range(7, -1, -1))]
    assert np.allclose(np.nansum(grid, axis=1), 100)
    softmax = [site.endswith("softmax") for site in counts.counts]
    assert np.isnan(grid[softmax][:, :8]).all() and not np.isnan(grid[:, 8:]).any()  # no negative levels there
    site = next(iter(counts.counts))
    largest = counts.counts[site][:, -1].sum() / counts.counts[site].sum()
    assert grid[0, -1] == pytest.approx(100 * largest)


def test_counts_without_sites_are_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no site to draw"):
        levels_picture(LevelCounts(1), tmp_path / "levels.png")
