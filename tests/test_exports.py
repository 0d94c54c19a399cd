"""Exports for hardware: read back by readers that know only docs/hardware.md, and run as they are written."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import transpike
from transpike import pipeline
from transpike._literal import Literal, Spikes
from transpike.cli import main
from transpike.codecs.events import partial_path, read_events, write_events
from transpike.codecs.nir_drift import drift
from transpike.codecs.nir_file import read_nir
from transpike.codecs.nir_graph import to_nir, write_nir
from transpike.codecs.nir_neuron import neuron_graph
from transpike.codecs.nir_run import flat, run_nir_on
from transpike.codecs.relu_neurons import relu_neurons
from transpike.codecs.weights import write_weights
from transpike.errors import CalibrationError, ConfigError, DataError, MissingExtra, ModelError
from transpike.neurons import Differential, MultiThreshold, Neuron, PublishedMultiThreshold
from transpike.observers import Percentile
from transpike.recipes import Recipe, differential, ecmt
from transpike.types import Threshold
from transpike.zoo.digits import load_digits, load_model

nir = pytest.importorskip("nir", reason="the extra 'hardware' is not installed")
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
STEPS = 4


def without_ties(snn: transpike.SpikingModel) -> transpike.SpikingModel:
    """Thresholds off the grid, so that no membrane lies exactly between two levels, where rounding decides."""
    random = Random(0)
    moved = {
        name: Threshold(t.positive * random.uniform(0.9, 1), t.negative * random.uniform(0.9, 1))
        for name, t in snn.thresholds.items()
    }
    snn.calibration = transpike.Calibration(moved, 0)
    return snn


def digits(recipe: str | Recipe = "ecmt", count: int = 3) -> tuple[transpike.SpikingModel, Tensor]:
    """A small Vision Transformer in float64, and images for it."""
    images = torch.from_numpy(load_digits("test")[0][:count]).double().unsqueeze(1) / 16
    return without_ties(transpike.convert(load_model().double(), [images], recipe)), images


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic random and off zero, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=generator) - 0.5
                value.copy_(drawn.abs() + 0.5 if "var" in name else drawn + 0.05)
    return model.eval().double()


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(7, 12), nn.BatchNorm1d(12), nn.Linear(12, 9), nn.Linear(9, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.drop(self.b(self.norm(self.a(x)).relu()).relu())) * 0.5 + 0.25


class Conv(nn.Module):
    """Groups, dilation, 'same' padding, a batch norm that folds and one that does not, sums of signals, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.grouped, self.side = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Conv2d(4, 6, 1)
        self.late, self.wide = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, padding="same", dilation=2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.late(self.grouped(x) + self.side(x) - 0.1).relu()
        return self.head(F.avg_pool2d(self.wide(x), 2).mean((2, 3)))


class Residual(nn.Module):
    """A shortcut that subsamples and pads channels (option A), and a pool right behind a ReLU: analog ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = (self.two(self.one(x).relu()) + short).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (MLP, (6, 7)),
    "conv": (Conv, (3, 2, 8, 8)),
}
RECIPES = {
    "ecmt": ecmt(),
    "two-sided": ecmt(symmetric=True, cutoff=0.5, levels=5),
    "published": Recipe("published", PublishedMultiThreshold(6), Percentile(0.5, symmetric=True)),
    "differential": differential(levels=6),
}


def converted(name: str, recipe: str) -> tuple[transpike.SpikingModel, Tensor]:
    build, shape = MODELS[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return without_ties(transpike.convert(scrambled(build()), [inputs], RECIPES[recipe])), inputs


# --- events ----------------------------------------------------------------------------------------------------------


def ten_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """An event file read with struct and numpy alone."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<8sII", data)
    header, at, steps = json.loads(data[16 : 16 + length]), 16 + length + 4, [{}]
    while at < len(data):
        tag, step, site, count, size = struct.unpack_from("<4sIIQQ", data, at)
        assert zlib.crc32(data[at : at + 28 + size]) == struct.unpack_from("<I", data, at + 28 + size)[0]
        events = np.frombuffer(data, [("neuron", "<u4"), ("channel", "u1")], count * (tag == b"SITE"), at + 28)
        at += 28 + size + 4
        steps.append({}) if tag == b"STEP" else steps[-1].update({header["sites"][site]["name"]: events})
    assert (magic, version) == (b"TPKEVENT", 1)
    return header, steps[:-1]


class Recording(Literal):
    """The network in spikes, which remembers them."""

    def _neuron(self, node: Any, *rest: Any) -> Spikes:
        spikes = super()._neuron(node, *rest)
        self.__dict__.setdefault("heard", []).append((str(node.args[1]), spikes))
        return spikes


@pytest.mark.parametrize("recipe", ["ecmt", "ecmt-code", "differential"])
def test_events_are_the_spikes_of_the_literal_network(recipe: str, tmp_path: Path) -> None:
    snn, images = digits(recipe)
    path = write_events(snn, images, tmp_path / "deep" / "spikes.tpk", steps=STEPS)
    literal = Recording(snn, check=True)
    run, _ = literal.run(images, steps=STEPS)
    header, steps = ten_lines(path)
    sites = {site["name"]: site for site in header["sites"]}
    assert header["samples"] == 3 and len(steps) == STEPS == header["steps"]
    assert len(literal.heard) == STEPS * len(sites)  # type: ignore[attr-defined]
    for i, (name, spikes) in enumerate(literal.heard):  # type: ignore[attr-defined]
        events = steps[i // len(sites)][name]
        channels = np.zeros((len(spikes.amplitudes), spikes.channels[0].numel()), bool)
        channels[events["channel"], events["neuron"]] = True
        assert np.array_equal(channels, spikes.channels.flatten(1).numpy())
        assert tuple(sites[name]["amplitudes"]) == spikes.amplitudes
        assert sites[name]["shape"] == list(spikes.channels.shape[1:])
    for name, counts in run.spikes.spikes.items():
        assert [len(step[name]) for step in steps] == counts.tolist()


@pytest.mark.parametrize("recipe", ["ecmt", "balanced", "cascade", "parallel"])
def test_our_reader_replays_what_was_emitted(recipe: str, tmp_path: Path) -> None:
    snn, images = digits(recipe)
    found = read_events(write_events(snn, images, tmp_path / "e", steps=STEPS))
    assert found.steps == STEPS and not found.truncated
    run = snn.simulate(images, STEPS)
    counts = {name: count.tolist() for name, count in found.counts().items()}
    assert counts == {name: count.tolist() for name, count in run.spikes.spikes.items()}
    head = "head:input"  # the head reads the mean of what its neuron emitted so far
    mean = sum(found.emitted(t)[head] for t in range(1, STEPS + 1))
    mean = mean / STEPS if found.header["code"] == "rate" else mean  # which is the sum in the other code
    logits = F.linear(torch.from_numpy(mean), snn.source_module.head.weight, snn.source_module.head.bias)
    assert (logits.squeeze() - run.outputs[-1]).abs().max() < 1e-12
    with pytest.raises(ConfigError, match="1..4"):
        found.step(5)


def test_every_cut_leaves_the_whole_steps_before_it(tmp_path: Path) -> None:
    snn, x = converted("mlp", "ecmt")
    path = write_events(snn, x, tmp_path / "e", steps=3)
    whole = path.read_bytes()
    ends = [0, *(i + 32 for i in range(len(whole)) if whole[i : i + 4] == b"STEP")]
    start = 20 + struct.unpack_from("<I", whole, 12)[0]
    for size in range(start, len(whole), 7):
        path.write_bytes(whole[:size])
        found = read_events(path)
        assert found.steps == sum(end <= size for end in ends[1:]) and found.truncated
        assert f"step {found.steps + 1} of 3" in found.problem
    for size in (0, 5, start - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="not an event file|damaged header"):
            read_events(path)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    snn, x = converted("mlp", "ecmt")
    path = write_events(snn, x[:1], tmp_path / "e", steps=2)
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        try:
            found = read_events(path)
        except ConfigError:
            continue
        assert found.truncated and found.steps < 2


def test_an_interrupted_dump_is_readable(tmp_path: Path) -> None:
    snn, x = converted("mlp", "ecmt")
    path = tmp_path / "e"

    def stop(step: int) -> None:
        assert read_events(partial_path(path)).steps == step  # every step is on the disk when it is done
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_events(snn, x, path, steps=5, progress=stop)
    assert not path.exists() and read_events(partial_path(path)).steps == 2
    write_events(snn, x, path, steps=2)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    snn, x = converted("mlp", "ecmt")
    target, link = tmp_path / "deep" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    write_events(snn, x, link, steps=1)
    assert link.is_symlink() and read_events(target).steps == 1
    assert not partial_path(link).exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("inputs", "steps", "error"),
    [
        (torch.zeros(2, 8), 2, DataError),
        (torch.full((2, 7), torch.nan), 2, DataError),
        (torch.zeros(2, 7), 0, ConfigError),
    ],
)
def test_bad_input_leaves_no_file(inputs: Tensor, steps: int, error: type, tmp_path: Path) -> None:
    with pytest.raises(error):
        write_events(converted("mlp", "ecmt")[0], inputs, tmp_path / "e", steps=steps)
    assert not list(tmp_path.iterdir())


# --- weights ---------------------------------------------------------------------------------------------------------


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read with json and the safetensors format alone, checksums held against the files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for layer in manifest["layers"]:
        data = (folder / layer["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == layer["sha256"]
        length = struct.unpack_from("<Q", data)[0]
        described = json.loads(data[8 : 8 + length])
        described.pop("__metadata__")
        assert {name: entry["shape"] for name, entry in described.items()} == layer["tensors"]
        layer["numbers"] = {
            name: np.frombuffer(data, {"F64": "<f8", "F32": "<f4"}[entry["dtype"]], offset=8 + length)[
                entry["data_offsets"][0] // 8 : entry["data_offsets"][1] // 8
            ].reshape(entry["shape"])
            for name, entry in described.items()
        }
    return manifest


@pytest.mark.parametrize("recipe", RECIPES)
def test_scaled_weights_select_and_add(recipe: str, tmp_path: Path) -> None:
    """One step of a layer: the sum of the rows that the events of each channel select, from the files alone."""
    snn, x = converted("mlp", recipe)
    manifest = manifest_of(write_weights(snn, tmp_path / "w", scaled=True))
    _, steps = ten_lines(write_events(snn, x, tmp_path / "e", steps=1))
    sites = {site["name"]: site for site in manifest["sites"]}
    first = snn.simulate(x, 1)
    layer = manifest["layers"][-1]
    assert layer["name"] == "c" and layer["site"] == "c:input" and sites["c:input"]["read_by"] == ["c"]
    total = np.tile(layer["numbers"]["bias"], (6, 1))
    for neuron, channel in steps[0]["c:input"]:
        total[neuron // 9] += layer["numbers"][f"weight.{channel}"][:, neuron % 9]
    assert np.abs(total * 0.5 + 0.25 - first.outputs[0].numpy()).max() < 1e-12
    for channel, amplitude in enumerate(sites["c:input"]["amplitudes"]):
        assert np.array_equal(layer["numbers"][f"weight.{channel}"], layer["numbers"]["weight"] * amplitude)


def test_what_is_not_in_spikes_is_listed(tmp_path: Path) -> None:
    snn, _ = digits()
    manifest = manifest_of(write_weights(snn, tmp_path))
    rows = {(row["op"].split(".")[0], row["module"]): row for row in manifest["graph"]}
    assert rows["softmax", "blocks.0.attn"]["treatment"] == "compensated"
    assert rows["layer_norm", "norm"]["treatment"] == "compensated" and rows["layer_norm", "norm"]["parameters"]
    assert rows["conv2d", "patch_embed.proj"]["treatment"] == "analog (first layer)"
    assert any(row["treatment"] == "spiking product" for row in manifest["graph"])
    assert len(manifest["graph"]) == sum(n.op == "call_function" for n in snn.program.module.graph.nodes)
    names = {row["node"] for row in manifest["graph"]} | {entry["node"] for entry in manifest["inputs"]}
    assert all(set(row["inputs"]) <= names for row in manifest["graph"]) and manifest["output"] in names
    assert {s["name"] for s in manifest["sites"]} == {row["site"] for row in manifest["graph"] if row["site"]}
    assert {s["name"]: s["thresholds"] for s in manifest["sites"]} == {
        n: t.to_json() for n, t in snn.thresholds.items()
    }
    assert sum(row["layer"] is not None for row in manifest["graph"]) == len(manifest["layers"])


def test_geometry_and_folding(tmp_path: Path) -> None:
    snn, x = converted("conv", "ecmt")
    plain, folded = (manifest_of(write_weights(snn, tmp_path / str(f), fold_batch_norm=f)) for f in (False, True))
    by_name = {layer["name"]: layer for layer in plain["layers"]}
    assert by_name["first"]["geometry"] == {"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    assert by_name["grouped"]["geometry"]["groups"] == 2 and by_name["wide"]["geometry"]["padding"] == "same"
    assert by_name["first"]["site"] is None and by_name["first"]["analog"] == "first layer"
    treatment = {row["module"]: row["treatment"] for row in plain["graph"] if row["op"].startswith("batch_norm")}
    assert treatment == {"norm": "affine", "late": "affine"}
    treatment = {row["module"]: row["treatment"] for row in folded["graph"] if row["op"].startswith("batch_norm")}
    assert treatment == {"norm": "folded into first", "late": "affine"}  # late reads a sum: nothing to fold it into
    numbers = folded["layers"][0]["numbers"]
    weight, bias = (torch.from_numpy(numbers[name].copy()) for name in ("weight", "bias"))
    model = snn.source_module
    with torch.no_grad():
        expected = model.norm(model.first(x))
    assert (F.conv2d(x, weight, bias, stride=2, padding=1) - expected).abs().max() < 1e-12
    assert folded["layers"][0]["folded_batch_norm"]["module"] == "norm"


def test_weights_do_not_land_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="it is a file"):
        write_weights(converted("mlp", "ecmt")[0], tmp_path / "taken")


# --- NIR: the neuron -------------------------------------------------------------------------------------------------

NEURONS: list[Neuron] = [
    MultiThreshold(4), MultiThreshold(3, 0.5), MultiThreshold(1), PublishedMultiThreshold(4), Differential(5),
]  # fmt: skip


def emitted_by(graph: Any, drives: Tensor) -> Tensor:
    return torch.stack([step["output"] for step in run_nir_on(graph, ({"input": drive} for drive in drives))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", [(1.0, 1.0), (0.7, 0.0), (0.0, 1.3), (0.0, 0.0), (0.9, 0.2)], ids=str)
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_the_graph_fires_where_the_neuron_does_to_the_last_bit(
    neuron: Neuron, pair: tuple[float, float], dtype: torch.dtype
) -> None:
    threshold = Threshold(*pair)
    edges = torch.tensor(
        [a * f for a in neuron.amplitudes(threshold) for f in (0.5, 0.75, 1, 1.5, 2.5)] + [0.0], dtype=dtype
    )
    infinity = torch.tensor(torch.inf, dtype=dtype)
    potentials = torch.cat([edges, torch.nextafter(edges, infinity), torch.nextafter(edges, -infinity)])
    potentials = torch.cat([potentials, torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=dtype)])
    graph = neuron_graph(neuron, threshold, tuple(potentials.shape), dtype, site="s", behind_relu=False)
    assert torch.equal(emitted_by(graph, potentials[None, None])[0, 0], neuron.quantise(potentials, threshold) + 0.0)


@pytest.mark.parametrize("behind_relu", [False, True])
@pytest.mark.parametrize("threshold", [Threshold(1.0, 1.0), Threshold(0.75, 0.0), Threshold(0.0, 1.25)])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_a_relu_before_the_neuron_is_thresholds(neuron: Neuron, threshold: Threshold, behind_relu: bool) -> None:
    """Against the module that compensates a ReLU, and a membrane, written out; multiples of 2^-12 keep sums exact."""
    drives = (
        torch.randn(30, 400, generator=torch.Generator().manual_seed(3), dtype=torch.float64).mul(4096).round() / 4096
    )
    graph = neuron_graph(neuron, threshold, (400,), torch.float64, site="s", behind_relu=behind_relu)
    total, membrane, expected = torch.zeros(400).double(), torch.zeros(400).double(), []
    for drive in drives:
        before = total.relu() if behind_relu else total
        total = total + drive
        membrane = membrane + (total.relu() if behind_relu else total) - before
        expected.append(neuron.quantise(membrane, threshold))
        membrane = membrane - expected[-1]
    assert torch.allclose(emitted_by(graph, drives[:, None])[:, 0], torch.stack(expected), rtol=0, atol=1e-12)
    assert behind_relu or (torch.stack(expected) < 0).any() == bool(threshold.negative)


# --- NIR: networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_read_back_is_the_network(name: str, recipe: str, tmp_path: Path) -> None:
    snn, x = converted(name, recipe)
    graph = read_nir(write_nir(snn, tmp_path / "net.nir"))
    found = drift(snn, graph, x, steps=STEPS)
    assert max(found.outputs) < 1e-12 * max(found.scale, 1) and not any(found.spikes)
    assert sum(found.emitted) > 50 and found.scale > 0.05
    assert found.emitted == tuple(
        sum(c[t] for c in snn.simulate(x, STEPS).spikes.spikes.values()) for t in range(STEPS)
    )
    kinds = {type(node).__name__ for node in flat(graph)[0].values()}
    assert {"Threshold", "I", "Delay", "Scale"} <= kinds


def test_drift_sees_a_changed_weight(tmp_path: Path) -> None:
    snn, x = converted("mlp", "ecmt")
    graph = read_nir(write_nir(snn, tmp_path / "net.nir"))
    graph.nodes["b"].weight[0, 0] += 0.5
    found = drift(snn, graph, x, steps=3)
    assert max(found.outputs) > 1e-3 and any(found.spikes)
    assert "spikes that differ" in str(found)
    with pytest.raises(DataError, match="received NaN or infinity"):
        drift(snn, graph, x.log(), steps=3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_residual_networks_need_neurons_behind_every_relu(recipe: str) -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    snn = without_ties(transpike.convert(scrambled(Residual()), [x], RECIPES[recipe]))
    with pytest.raises(ModelError, match="analog value.*relu_neurons"):
        to_nir(snn)
    spoken = relu_neurons(snn, [x])
    assert len(spoken.plan.sites) == len(snn.plan.sites) + 1 == len(spoken.neurons)
    found = drift(without_ties(spoken), to_nir(spoken), x, steps=STEPS)
    assert max(found.outputs) < 1e-12 * max(found.scale, 1) and not any(found.spikes)
    with pytest.raises(CalibrationError):
        relu_neurons(snn, [])


def test_neurons_behind_every_relu_approach_the_source() -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    snn = transpike.convert(scrambled(Residual()), [x], "ecmt")
    spoken = relu_neurons(snn, [x])
    errors = (spoken.simulate(x, 256, count=False).outputs - snn.source(x)).abs().amax((1, 2))
    assert errors[255] < 0.02 * snn.source(x).abs().max() and errors[255] < errors[3] / 4
    before = snn.simulate(x, 3).outputs
    assert torch.equal(before, snn.simulate(x, 3).outputs) and not torch.equal(before, spoken.simulate(x, 3).outputs)


def test_neurons_that_join_bring_their_levels_and_scales(tmp_path: Path) -> None:
    model, x = scrambled(Residual()), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model.two.weight[0] *= 0.01  # a channel of its own magnitude
        model.two.bias[0] = 0.01
    snn = transpike.convert(model, [x], ecmt(granularity="channel"))
    assert snn.neurons_per_sample == sum(site.neurons for site in snn.plan.sites)
    spoken = relu_neurons(snn, [x])
    (added,) = (site.name for site in spoken.plan.sites if site.name not in snn.thresholds)
    assert spoken.neurons[added].frame.scale.unique().numel() > 1  # type: ignore[attr-defined]
    assert spoken.neurons[added].levels == spoken.calibration.levels[added] > 8
    assert spoken.neurons_per_sample == sum(site.neurons for site in spoken.plan.sites) > snn.neurons_per_sample
    folder = snn.save_pretrained(tmp_path / "net")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="neurons behind ReLUs .* save the network it was made from"):
        spoken.save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ConfigError, match="recipe balanced sets the thresholds of all sites together"):
        relu_neurons(transpike.convert(model, [x], "balanced"), [x])


def small(body: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x: Tensor) -> Tensor:
            return body(self, x)

    return scrambled(Small())


def three(between: Callable[[Tensor], Tensor]) -> nn.Module:
    layers = {"a": nn.Linear(7, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 3)}
    return small(lambda m, x: m.c(between(m.b(m.a(x).relu()))), **layers)


def conv(between: Callable[[Tensor], Tensor]) -> nn.Module:
    layers = {"a": nn.Conv2d(2, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), "c": nn.Linear(4, 2)}
    return small(lambda m, x: m.c(between(m.b(m.a(x).relu())).mean((2, 3))), **layers)


def normed(m: Any, x: Tensor) -> Tensor:
    return m.c(m.n(m.a(x)))


def two(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu())


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "gelu": (three(F.gelu), "gelu.default in the model"),
    "softmax": (three(lambda x: x.softmax(-1)), "softmax.int in the model"),
    "layer norm": (small(normed, a=nn.Linear(7, 6), n=nn.LayerNorm(6), c=nn.Linear(6, 3)), "layer_norm.default in n"),
    "product": (three(lambda x: x * x.roll(1, -1)), "mul.Tensor in the model"),
    "relu6": (three(F.relu6), "hardtanh|relu6"),
    "max-pool": (conv(lambda x: F.max_pool2d(x.relu(), 2)), "max_pool2d.default in the model"),
    "analog relu": (conv(lambda x: x.relu()), "reads the ReLU of the model as an analog value"),
    "kernel": (small(two, a=nn.Conv2d(2, 4, 3), b=nn.Conv2d(4, 4, (3, 1))), "conv2d.default in b.*3 x 1"),
    "tokens": (small(two, a=nn.Linear(8, 6), b=nn.Linear(6, 6)), "linear.default in a"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_nir_cannot_hold_is_named_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    model, message = REFUSED[case]
    images = case in ("max-pool", "analog relu", "kernel", "tokens")
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64) if images else torch.randn(3, 7, dtype=torch.float64)
    snn = transpike.convert(model, [x], "ecmt")
    with pytest.raises(ModelError, match=message) as caught:
        write_nir(snn, tmp_path / "net.nir")
    assert "\n" not in str(caught.value) and "segments" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_transformer_is_refused_with_all_its_reasons() -> None:
    reasons = "layer_norm.default in blocks.0.norm1 .* and 8 more; .*product of two signals.*softmax"
    with pytest.raises(ModelError, match=reasons):
        to_nir(digits()[0])


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(ModelError, match="site s has a negative threshold"):
        neuron_graph(PublishedMultiThreshold(3), Threshold(1.0, -0.1), (2,), torch.float32, site="s", behind_relu=False)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, _ = converted("mlp", "ecmt")
    monkeypatch.setitem(sys.modules, "nir", None)
    for segments in (False, True):
        with pytest.raises(MissingExtra, match="hardware"):
            write_nir(snn, tmp_path / "n", segments=segments)
    assert not list(tmp_path.iterdir())


def test_a_loop_without_delay_is_refused() -> None:
    one = np.ones(2)
    nodes = {
        "input": nir.Input(np.array([2])),
        "a": nir.I(one),
        "b": nir.Scale(one),
        "output": nir.Output(np.array([2])),
    }
    graph = nir.NIRGraph(nodes, [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")])
    with pytest.raises(ModelError, match="loop without a Delay"):
        next(run_nir_on(graph, [{"input": torch.ones(1, 2)}]))


def test_a_file_that_is_no_nir(tmp_path: Path) -> None:
    (tmp_path / "x.nir").write_bytes(b"no")
    for path in (tmp_path / "x.nir", tmp_path / "absent.nir"):
        with pytest.raises(ConfigError, match="not a NIR file"):
            read_nir(path)


# --- NIR: segments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["ecmt", "differential"])
def test_segments_of_a_transformer(recipe: str, tmp_path: Path) -> None:
    """Every linear segment, driven with random input, against the layer on what a membrane written out emits."""
    snn, _ = digits(recipe)
    manifest = json.loads((write_nir(snn, tmp_path / "s", segments=True) / "manifest.json").read_text())
    assert len(manifest["segments"]) == len(snn.plan.sites)
    outside = {(row["op"].split(".")[0], row["module"]) for row in manifest["outside"]}
    assert {("softmax", "blocks.0.attn"), ("layer_norm", "norm"), ("conv2d", "patch_embed.proj")} <= outside
    modules, checked = dict(snn.source_module.named_modules()), 0
    for segment in manifest["segments"]:
        graph = read_nir(tmp_path / "s" / segment["file"])
        drives = torch.randn(
            3, 2, *segment["input_shape"], generator=torch.Generator().manual_seed(4), dtype=torch.float64
        )
        neuron, threshold = snn.neurons[segment["site"]], snn.thresholds[segment["site"]]
        membrane = torch.zeros_like(drives[0])
        for t, step in enumerate(run_nir_on(graph, ({"input": drive} for drive in drives))):
            membrane = membrane + drives[t]
            spikes = neuron.quantise(membrane, threshold)
            membrane = membrane - spikes
            for port, told in segment["outputs"].items():
                if told["layer"] is None:
                    assert (step[port] - spikes).abs().max() < 1e-12
                    continue
                layer, checked = modules[told["layer"]], checked + 1
                bias = layer.bias if layer.bias is not None and (t == 0 or neuron.code == "rate") else None
                tokens = "features" in segment["layout"]
                wanted = F.linear(spikes.mT if tokens else spikes, layer.weight, bias)
                assert (step[port] - (wanted.mT if tokens else wanted)).abs().max() < 1e-12
    assert checked >= 3 * 4


# --- the command line ------------------------------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn
class Small(nn.Module):
    pretrained_cfg = dict(input_size=(1, 6, 6), mean=(0.0,), std=(1.0,), crop_pct=1.0, interpolation="bilinear")
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.a, self.b, self.c = nn.Flatten(), nn.Linear(36, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    def forward(self, x):
        x = self.a(self.flat(x)).relu()
        return self.c((x + self.b(x)).relu())
def make():
    return Small().eval()
"""
Say = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """The command line in a folder with two saved networks and data."""
    (tmp_path / "small_net.py").write_text(FACTORY)
    images = np.random.default_rng(0).integers(0, 256, (24, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(24) % 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "small_net", raising=False)

    def run(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        out, err = capsys.readouterr()
        return code, out, err

    assert run("convert small_net:make --calibration data.npz --recipe ecmt --out small --quiet")[0] == 0
    assert run("convert digits --calibration digits --samples 8 --recipe ecmt --out digits --quiet")[0] == 0
    return run


def test_export_from_the_command_line(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = say("export events digits --out e.tpk --data digits --steps 3 --limit 2")
    assert code == 0 and "spikes of 2 samples in 3 steps" in err and read_events("e.tpk").steps == 3
    code, _, err = say("export weights digits --out w --scaled")
    assert code == 0 and "softmax" in err and (tmp_path / "w" / "manifest.json").is_file()
    code, _, err = say("export nir digits --out s --segments")
    assert code == 0 and (tmp_path / "s" / "manifest.json").is_file()
    own = "--model small_net:make"
    seen, inputs_of = [], pipeline.inputs_of
    monkeypatch.setattr(pipeline, "inputs_of", lambda part, *how: seen.append(part.record()) or inputs_of(part, *how))
    code, out, err = say(f"export nir small {own} --out n.nir --relu-neurons data.npz --data data.npz --steps 3")
    assert "share data.npz: 12 random samples (seed 0) calibrate, the other 12 are evaluated" in err
    calibrated, ran = (set(record["indices"]) for record in seen)
    assert len(calibrated) == 12 and len(ran) == 4 and not calibrated & ran
    assert code == 0 and "spikes that differ" in out and "agree on" in err and (tmp_path / "n.nir").is_file()


BAD = {
    "export nir digits --out n.nir": "layer_norm.default in",
    "export nir small --model small_net:make --out n.nir": "as an analog value",
    "export nir digits --out s --segments --data digits": "--segments",
    "export events digits --out e --data digits --steps 0": "--steps must be at least 1",
    "export events digits --out e --data digits --limit 0": "--limit must be at least 1",
    "export events digits --out e --data nowhere.npz": "does not exist",
    "export events digits --out w --data digits": "Is a directory; name a file",
    "export events digits --out pipe --data digits": "It is no regular file; name a file",
    "export weights data.npz --out x": "not a folder",
    "export weights digits --out data.npz": "it is a file",
    "export events . --out e --data digits": "holds no config.json",
    "export weights small --out x": "only its owner can build",
    "export events small --model small_net:make --out e --data data.npz --split test": "--split would change nothing",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gets_one_sentence_exit_code_2_and_no_file(line: str, say: Say, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    os.mkfifo(tmp_path / "pipe")  # never a real device: what replaces one takes it from everybody
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    code, out, err = say(line)
    errors = [text for text in err.splitlines() if text.startswith("error:")]
    assert code == 2 and len(errors) == 1 and BAD[line] in errors[0] and "Traceback" not in out + err
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before
    assert (tmp_path / "pipe").is_fifo()


def test_an_interruption_says_what_is_left(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    from transpike.codecs import events

    plain = events._steps

    def interrupted(*args: Any) -> Any:
        for number, step in enumerate(plain(*args)):
            if number == 2:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(events, "_steps", interrupted)
    code, _, err = say("export events digits --out e --data digits --steps 5")
    assert code == 130 and "e.partial holds 2 of 5 steps" in err and not Path("e").exists()
    assert read_events("e.partial").truncated


# --- a real residual network -----------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models and data are not beside the checkout")
@pytest.mark.parametrize("recipe", ["ecmt", "two-sided"])
def test_resnet20(recipe: str, tmp_path: Path) -> None:
    import shared_models
    from transpike.pipeline import DataChoice

    model = shared_models.resnet20_cifar10()
    stored = safetensors.numpy.load_file(SHARED / "resnet-cifar10" / "resnet20-12fca82f.safetensors")
    model.load_state_dict({name.removeprefix("module."): torch.from_numpy(value) for name, value in stored.items()})
    samples = DataChoice(str(SHARED / "cifar10" / "cifar10_test_jpg.tar"), limit=12).open(model.eval())
    images = torch.stack([samples.fetch(i)[0] for i in range(12)]).double()  # type: ignore[arg-type]
    snn = relu_neurons(transpike.convert(model.double(), [images[:8]], RECIPES[recipe]), [images[:8]])
    graph = read_nir(write_nir(without_ties(snn), tmp_path / "resnet.nir"))
    found = drift(snn, graph, images[8:10], steps=3)
    assert max(found.outputs) < 1e-10 * found.scale and not any(found.spikes) and sum(found.emitted) > 10**5


def test_the_example_mlp_learns_and_nir_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import digits_mlp

    monkeypatch.setattr(digits_mlp, "EPOCHS", 4)
    model, (inputs, labels) = digits_mlp.trained(), digits_mlp.digits("test")
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.9
    snn = transpike.convert(model.double(), [inputs.double()[:100]], "ecmt")
    found = drift(snn, to_nir(snn), inputs.double()[:20], steps=STEPS)
    assert max(found.outputs) < 1e-12 * found.scale and not any(found.spikes)
