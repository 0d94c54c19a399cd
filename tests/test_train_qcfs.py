"""The QCFS example: its gradients, its network in spikes against integrate-and-fire written out, and itself, tiny."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import train_qcfs
import transpike
from train_qcfs import QCFS, SmallCNN
from transpike.recipes import parallel, recipe_named

WIDTHS = (4, 6, 6)


@pytest.fixture(scope="module")
def network() -> SmallCNN:
    """Random weights, statistics and thresholds in float64, without rounding at ties."""
    torch.manual_seed(0)
    model = SmallCNN(4, WIDTHS).double().train()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics of the next batch
    with torch.no_grad():
        model(torch.randn(16, 3, 16, 16, dtype=torch.float64))
        for i, layer in enumerate(layer for layer in model if isinstance(layer, QCFS)):
            layer.threshold.fill_(0.9 + 0.37 * i)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_gradients_are_the_papers(levels: int) -> None:
    """da/dz: 1 for 0 < z < lambda, else 0. da/dlambda: (a - z) / lambda within, 1 above, 0 below."""
    activation = QCFS(levels).double()
    theta = activation.threshold.item()
    values = torch.linspace(-1.0, 2.0, 61, dtype=torch.float64) * theta * 0.987
    for value in values:
        z = value.clone().requires_grad_()
        activation.threshold.grad = None
        a = activation(z)
        a.backward()
        level = np.floor(value.item() * levels / theta + 0.5)
        assert a.item() == pytest.approx(theta * min(max(level, 0), levels) / levels)
        above, below = value > theta, value < 0
        assert z.grad.item() == (0 if above or below else 1)
        expected = 1.0 if above else 0.0 if below else (a.item() - value.item()) / theta
        assert activation.threshold.grad.item() == pytest.approx(expected, abs=1e-12)


def written_out(model: SmallCNN, x: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """The published step-by-step form: membranes of theta/2 that add up pre-activations, fire once and lose theta."""
    membranes: dict[int, Tensor] = {}
    spikes, total, means = [0] * steps, torch.zeros(()), []
    for t in range(steps):
        value = x
        for i, layer in enumerate(model):
            if not isinstance(layer, QCFS):
                value = layer(value)
                continue
            theta = layer.threshold.detach()
            charged = membranes.get(i, theta / 2) + value
            fired = charged >= theta
            membranes[i], value = charged - theta * fired, theta * fired
            spikes[t] += int(fired.sum())
        total = total + value
        means.append(total / (t + 1))
    return torch.stack(means), spikes


@torch.no_grad()
def test_qcfs_recipe_is_integrate_and_fire_step_by_step(network: SmallCNN, images: Tensor) -> None:
    """Unevenness included: neurons after the first layer see inputs that change from step to step."""
    run = train_qcfs.spiking(network, recipe_named("qcfs"), images).simulate(images, 9)
    outputs, spikes = written_out(network, images, 9)
    torch.testing.assert_close(run.outputs, outputs, rtol=1e-10, atol=1e-10)
    assert sum(run.spikes.spikes.values()).tolist() == spikes and min(spikes) > 0  # type: ignore[union-attr]
    assert (outputs[3] - network(images)).abs().max() > 1e-3, "else nothing is uneven and this says little"


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 4, 6])
def test_parallel_neurons_are_the_activation_with_as_many_levels(network: SmallCNN, images: Tensor, steps: int) -> None:
    run = train_qcfs.spiking(network, parallel(levels=steps), images).simulate(images, 1)
    torch.testing.assert_close(run.outputs[0], network.with_levels(steps).double()(images), rtol=1e-10, atol=1e-10)


def test_neurons_stand_where_the_activations_were(network: SmallCNN, images: Tensor) -> None:
    """One per activation, in its shape, at its trained threshold."""
    snn = train_qcfs.spiking(network, recipe_named("qcfs"), images)
    shapes = [(None, 4, 8, 8), (None, 6, 8, 8)]
    assert [site.shape for site in snn.plan.sites][:2] == shapes and len(snn.plan.sites) == len(WIDTHS)
    found = [snn.thresholds[site.name] for site in snn.plan.sites]
    assert [t.positive for t in found] == [layer.threshold.item() for layer in network if isinstance(layer, QCFS)]
    assert {t.negative for t in found} == {0.0}


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On two colours that stand for two classes: it learns them, saves, and the saved network loads again."""
    random = np.random.default_rng(0)
    labels = np.arange(80) % 2
    pixels = random.integers(0, 120, (80, 32, 32, 3)) + 120 * (labels[:, None, None, None] == np.arange(3))
    np.savez(tmp_path / "two.npz", x=pixels.astype(np.uint8), y=labels)
    monkeypatch.setattr(sys, "argv", ["train_qcfs.py", f"{tmp_path}/two.npz", f"{tmp_path}/out", "--epochs", "6"])
    train_qcfs.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1: loss ") and lines[7].split()[:4] == ["T", "qcfs", "activation", "parallel"]
    table = np.array([line.split() for line in lines[8:]], float)
    assert table[:, 0].tolist() == list(train_qcfs.STEPS)
    assert (table[-1, 1:] > 90).all() and np.array_equal(table[:, 2], table[:, 3])
    saved = train_qcfs.relu_cnn()
    saved.load_state_dict(load_file(tmp_path / "out" / "qcfs.safetensors"))
    assert isinstance(saved[3], QCFS) and saved[3].threshold.item() != train_qcfs.FIRST_THRESHOLD
    snn = transpike.load(tmp_path / "out" / "snn", model=saved)
    x = torch.zeros(2, 3, 32, 32)
    assert torch.equal(snn.source(x), saved(x)) and isinstance(snn.source_module, nn.Module)
