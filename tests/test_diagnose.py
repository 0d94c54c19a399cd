"""The per-layer view: every statistic against a loop, a planted fault is found, and nothing that JSON cannot take."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from oracle import BLOCK_SITES, Block, Membrane, drives, each, nearest_level
from transpike import LayerView, SiteReport, diagnose
from transpike._diagnose import _any_sample, largest_levels
from transpike.cli import main
from transpike.energy import load_prices
from transpike.errors import ConfigError, DataError
from transpike.measure.fidelity import LIMIT_DB, SiteSums, decibel, some_steps
from transpike.neurons import MultiThreshold, PublishedMultiThreshold
from transpike.recipes import ecmt
from transpike.report.layers_picture import layers_picture, named_rows
from transpike.types import Threshold

STEPS, LEVELS = 5, 4
FIRST, SECOND = "middle:input", "last:input"
MIDDLE = [[0.5, -1.0, 0.25], [0.75, 0.5, -0.5]]


class Two(nn.Module):
    """An analog first layer that changes nothing, then two layers behind neurons: middle (3 -> 2) and last (2 -> 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(a, b, bias=False) for a, b in ((3, 3), (3, 2), (2, 2)))
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3))
            self.middle.weight.copy_(torch.tensor(MIDDLE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


def two(thresholds: dict[str, float], levels: int = LEVELS) -> transpike.SpikingModel:
    model = Two().double().eval()
    return transpike.convert(model, thresholds, ecmt(levels=levels), example=torch.ones(2, 3, dtype=torch.float64))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site(view: LayerView, name: str) -> SiteReport:
    return next(report for report in view.sites if report.name == name)


def sqnr_by_loop(x: torch.Tensor, means: Sequence[torch.Tensor]) -> list[float]:
    found = []
    for mean in means:
        signal = noise = 0.0
        for value, carried in zip(x.flatten().tolist(), mean.flatten().tolist(), strict=True):
            signal += value**2
            noise += (value - carried) ** 2
        found.append(10 * math.log10(signal / noise))
    return found


def means_by_membrane(drive: Sequence[torch.Tensor], theta: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(running means of the output, spikes) after each step."""
    neuron = Membrane(lambda v: each(lambda p: nearest_level(p, Threshold(theta, theta), LEVELS, 1.0), v))
    spikes = [neuron(d) for d in drive]
    return [torch.stack(spikes[:t]).sum(0) / t for t in range(1, len(spikes) + 1)], spikes


@pytest.fixture(scope="module")
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


@pytest.fixture(scope="module")
def snn(block: Block) -> transpike.SpikingModel:
    return transpike.convert(block, [randn(16, 4, 6, seed=1)], ecmt(levels=6))


@pytest.fixture(scope="module")
def view(snn: transpike.SpikingModel) -> LayerView:
    return diagnose(snn, [randn(12, 4, 6, seed=2)], steps=STEPS)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_definition() -> None:
    """The whole two-layer network by hand: constant input, membranes, loops."""
    thetas, x = {FIRST: 1.5, SECOND: 1.0}, randn(4, 3)
    view = diagnose(two(thetas), x.split(3), steps=STEPS)
    means, spikes = means_by_membrane([x] * STEPS, thetas[FIRST])
    weight = torch.tensor(MIDDLE, dtype=torch.float64)
    inputs = torch.stack([mean @ weight.T for mean in means])
    later, later_spikes = means_by_membrane(drives(inputs), thetas[SECOND])
    one, other = site(view, FIRST), site(view, SECOND)
    assert one.sqnr_db == pytest.approx(sqnr_by_loop(x, means), abs=1e-9)
    assert one.local_sqnr_db == pytest.approx(one.sqnr_db, abs=1e-9)
    assert other.sqnr_db == pytest.approx(sqnr_by_loop(x @ weight.T, later), abs=1e-9)
    local = [sqnr_by_loop(inputs[t], [later[t]])[0] for t in range(STEPS)]
    assert other.local_sqnr_db == pytest.approx(local, abs=1e-9)
    assert abs(other.sqnr_db[-1] - other.local_sqnr_db[-1]) > 0.5  # they do say different things here
    for report, emitted in ((one, spikes), (other, later_spikes)):
        theta, elements = thetas[report.name], emitted[0].numel()
        at_largest = [[abs(v) == theta for v in step.flatten().tolist()] for step in emitted]
        assert report.saturation == tuple(sum(step) / elements for step in at_largest)
        assert report.pinned == sum(map(all, zip(*at_largest, strict=True))) / elements
        assert report.firing == tuple(int((step != 0).sum()) / elements for step in emitted)
    assert 0 < one.pinned < one.saturation[-1] < 1  # neither statistic is trivial


def test_a_tiny_threshold_saturates() -> None:
    x = randn(6, 3).abs() + 0.5
    view = diagnose(two({FIRST: 1e-3, SECOND: 1e-3}), [x], steps=STEPS)
    broken = site(view, FIRST)
    assert broken.saturation == (1.0,) * STEPS and broken.pinned == 1.0 and broken.dead == 0.0
    assert 0 < broken.sqnr_db[-1] < 0.1 and view.worst()[0] is broken


def test_a_huge_threshold_is_dead() -> None:
    view = diagnose(two({FIRST: 1.5, SECOND: 1e6}), [randn(6, 3)], steps=STEPS)
    broken = site(view, SECOND)
    assert broken.dead == 1.0 and broken.firing == (0.0,) * STEPS and broken.saturation == (0.0,) * STEPS
    assert broken.sqnr_db == (0.0,) * STEPS  # nothing arrives: the noise is the signal
    assert broken.energy_pj == 0.0 and view.worst()[0] is broken


def test_dead_means_on_no_sample_of_any_batch() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    x[:, 0], x[3, 1] = 1.0, 1.0  # neuron 0 always fires, neuron 1 for the last sample only, neuron 2 never
    for size in (1, 3, 4):
        dead = site(diagnose(two({FIRST: 1.0, SECOND: 1.0}), x.split(size), steps=2), FIRST).dead
        assert dead == pytest.approx(1 / 3)


class Windows(nn.Module):
    """Batch and windows share an axis, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = torch.relu(self.first(x)).reshape(-1, 2, 4)
        return self.head(self.inner(windows * 1.0).reshape(x.shape[0], -1, 4).mean(1))


def test_neurons_of_merged_batches_are_told_apart() -> None:
    torch.manual_seed(1)
    model, x = Windows().double().eval(), randn(5, 6, 3, seed=4)
    snn = transpike.convert(model, [x], ecmt(levels=3))
    seen = torch.zeros(6, 4, dtype=torch.bool)
    theta = snn.thresholds["inner:input"].positive
    for value in torch.relu(model.first(x)).detach():
        seen |= value >= theta / 4  # the smallest of three levels
    report = site(diagnose(snn, x.split(2), steps=1), "inner:input")
    assert report.neurons == seen.numel()
    assert report.dead == pytest.approx(1 - int(seen.sum()) / seen.numel())
    assert report.dead is not None and 0 < report.dead < 1


def test_where_samples_share_neurons_dead_is_unknown(tmp_path: Path) -> None:
    assert _any_sample(torch.ones(3, 3, dtype=torch.bool), -1, 3) is None
    assert SiteSums(1).dead is None
    view = made_up(2, 2)
    view = replace(view, sites=(replace(view.sites[0], dead=None), view.sites[1]))
    assert json.loads(json.dumps(view.to_json(), allow_nan=False))["sites"][0]["dead"] is None
    assert view.table().rows[0][-2] == "-"
    assert layers_picture(view, tmp_path / "p.png").stat().st_size > 0


def test_the_batch_size_does_not_matter(snn: transpike.SpikingModel, view: LayerView) -> None:
    for size in (5, 1):
        split = diagnose(snn, randn(12, 4, 6, seed=2).split(size), steps=STEPS)
        assert split.samples == view.samples == 12
        for one, other in zip(split.sites, view.sites, strict=True):
            for key, value in one.to_json().items():
                assert value == (value if isinstance(value, str) else pytest.approx(getattr(other, key), rel=1e-9)), key
            assert (one.saturation, one.pinned, one.dead, one.firing) == (
                other.saturation,
                other.pinned,
                other.dead,
                other.firing,
            )


def test_firing_and_energy_are_those_of_the_simulator(snn: transpike.SpikingModel, view: LayerView) -> None:
    run = snn.simulate(randn(12, 4, 6, seed=2), STEPS)
    assert view.energy_pj == pytest.approx(snn.energy(run).energy_pj[-1])
    assert sum(report.energy_share for report in view.sites) == pytest.approx(1.0)
    for report in view.sites:
        assert report.firing == pytest.approx(run.spikes.rates()[report.name].tolist())
    price = load_prices().pj["accumulate"]
    for layer in snn.plan.layers:
        sites = {operand.site for operand in layer.operands} - {None}
        if len(sites) == 2:  # a product of two sites: half for each, and v or q feeds nothing else
            half = price * int(run.spikes.operations[layer.name].sum()) / 12 / 2
            assert [site(view, str(name)).energy_pj for name in sites] == pytest.approx([half, half])
    assert {len({o.site for o in layer.operands} - {None}) for layer in snn.plan.layers} >= {1, 2}


@pytest.mark.parametrize("name", BLOCK_SITES)
def test_a_damaged_site_is_ranked_worst(block: Block, snn: transpike.SpikingModel, name: str) -> None:
    """A sixteenth of the range at one site: the site itself is named, not those behind it that inherit the noise."""
    thresholds = dict(snn.thresholds)
    healthy = thresholds[name]
    thresholds[name] = Threshold(healthy.positive / 16, healthy.negative / 16)
    x = randn(12, 4, 6, seed=2)
    damaged = transpike.convert(block, thresholds, ecmt(levels=6), example=x)
    found = diagnose(damaged, [x], steps=STEPS)
    assert found.worst(1)[0].name == name
    assert found.worst_table(1).rows[0][0] == name


def test_the_source_is_kept_for_one_batch_only() -> None:
    sums, value = SiteSums(2), torch.ones(3)
    sums.begin(value)
    for t in range(2):
        assert sums._source is value
        sums.step(t, value, value, torch.zeros(3, dtype=torch.bool))
    assert sums._source is None and sums._always is None


def test_largest_levels_of_both_conventions() -> None:
    assert largest_levels(MultiThreshold(3), Threshold(2.0, 0.5)) == (2.0, -0.5)
    assert largest_levels(MultiThreshold(3), Threshold(2.0, 0.0)) == (2.0,)
    assert largest_levels(PublishedMultiThreshold(3), Threshold(2.0, 0.5)) == (8.0, -2.0)
    assert largest_levels(MultiThreshold(3), Threshold(0.0, 0.0)) == ()


# --- values, tables, JSON --------------------------------------------------------------------------------------------


def test_decibel_is_always_a_number() -> None:
    assert decibel(100.0, 1.0) == pytest.approx(20.0)
    assert decibel(1.0, 0.0) == decibel(0.0, 0.0) == LIMIT_DB
    assert decibel(0.0, 1.0) == -LIMIT_DB
    assert decibel(1e300, 1e-300) == LIMIT_DB
    with pytest.raises(ValueError, match="finite"):
        decibel(math.nan, 1.0)


def test_json_of_exact_and_of_silent_sites_is_strict() -> None:
    """Inputs that are levels come through without error; a source that is 0 has no signal."""
    for x in (torch.tensor([[1.0, 0.5, 0.25]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)):
        view = diagnose(two({FIRST: 1.0, SECOND: 1.0}), [x], steps=3)
        assert site(view, FIRST).sqnr_db == (LIMIT_DB,) * 3
        data = view.to_json()
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        assert (data["format"], data["steps"], data["samples"]) == ("transpike-layers", 3, 1)
        assert sorted(data["worst"]) == sorted(entry["name"] for entry in data["sites"])


def test_tables_are_worst_first_and_in_graph_order(snn: transpike.SpikingModel, view: LayerView) -> None:
    names = [report.name for report in snn.plan.sites]
    assert [row[0] for row in view.table().rows] == names
    worst = [site(view, row[0]).local_sqnr_db[-1] for row in view.worst_table().rows]
    assert worst == sorted(worst) and len(worst) == len(names)
    assert "3 of" in view.worst_table(3).title and len(view.worst_table(3).rows) == 3
    assert str(view).startswith("Sites, worst first")
    assert [some_steps(t) for t in (1, 2, 5, 8)] == [(1,), (1, 2), (1, 2, 4, 5), (1, 2, 4, 8)]


# --- pictures --------------------------------------------------------------------------------------------------------


def made_up(count: int, steps: int) -> LayerView:
    random = np.random.default_rng(0)
    sites = []
    for i in range(count):
        rise = 4 + 26 * (1 - 0.8 ** np.arange(1, steps + 1)) + random.normal(0, 1.5, steps) - 6 * i / count
        shares = tuple((random.random(steps) * (0.4 if i % 8 == 7 else 0.05)).tolist())
        name = f"vision_model.encoder.layers.{i // 8}.{'self_attn' if i % 8 < 6 else 'mlp'}.fc{i % 8}:input"
        local = tuple((rise + random.random() * 6).tolist())
        dead = random.random() * 0.2 if i % 5 == 0 else 0.0
        sites.append(
            SiteReport(name, "linear", 10, shares, shares, min(shares), dead, tuple(rise.tolist()), local, 1.0, 0.01)
        )
    return LayerView(steps, 40, tuple(sites), 100.0)


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (100, 8), (300, 64)])
def test_pictures_of_any_size(count: int, steps: int, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(layers_picture(made_up(count, steps), tmp_path / "layers.png")) as picture:
        picture.load()
        assert picture.width == 1600 and picture.height < 4000
        assert picture.height >= 23 * min(count, 120)  # a row is as tall as its name


def test_the_worst_are_named_in_any_crowd() -> None:
    view = made_up(300, 2)
    rows = named_rows(view)
    assert {view.sites[row].name for row in rows} >= {report.name for report in view.worst(5)}
    assert rows == sorted(set(rows)) and len(rows) <= 120
    assert named_rows(made_up(100, 2)) == list(range(100))


def test_a_view_without_sites_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no site"):
        layers_picture(LayerView(1, 1, (), 0.0), tmp_path / "p.png")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_diagnosed_is_refused(snn: transpike.SpikingModel) -> None:
    x = randn(2, 4, 6)
    for steps in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="steps"):
            diagnose(snn, [x], steps=steps)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no sample"):
        diagnose(snn, [], steps=2)
    with pytest.raises(DataError, match="iterable"):
        diagnose(snn, 3, steps=2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shape"):
        diagnose(snn, [x[..., :3]], steps=2)
    with pytest.raises(DataError, match=r"site \S+ received NaN"):
        diagnose(snn, [x * torch.nan], steps=2)


def test_one_batch_may_come_alone(snn: transpike.SpikingModel) -> None:
    x = randn(2, 4, 6)
    assert diagnose(snn, x, steps=1) == diagnose(snn, [x], steps=1)


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("layers")
    assert main(f"convert digits --calibration digits --samples 32 --out {place / 'net'} --quiet".split()) == 0
    np.savez(place / "wide.npz", x=np.zeros((3, 1, 9, 9), np.float32))
    np.savez(place / "nan.npz", x=np.full((3, 1, 8, 8), np.nan, np.float32))
    return place


def test_command_line(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(network)
    words = f"layers net --data digits --steps 3 --limit 20 --json {tmp_path}/l.json --report {tmp_path}".split()
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "Sites in graph order" in out and "Sites, worst first, 10 of" in out
    data = json.loads((tmp_path / "l.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert json.loads((tmp_path / "layers.json").read_text()) == data
    assert (tmp_path / "layers.png").read_bytes()[:4] == b"\x89PNG"
    assert data["samples"] <= 20 and len(data["sites"][0]["sqnr_db"]) == data["steps"] == 3
    assert data["worst"][0] in out and data["command"] == ["transpike", *words]
    for key in ("source", "recipe", "thresholds", "calibration", "data", "versions", "seed"):
        assert data[key] is not None


BAD = {
    "layers net --data digits --steps 0": "--steps must be at least 1",
    "layers net --data digits --worst 0": "--worst must be at least 1",
    "layers . --data digits": "holds no",
    "layers nowhere --data digits": "nowhere",
    "layers net --data nowhere.npz": "does not exist",
    "layers net --data wide.npz": "9",
    "layers net --data nan.npz": "NaN",
    "layers net --data digits --batch-size 0": "batch_size 0",
    "layers net --data digits --limit 5 --steps 1 --json .": "cannot write",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gets_one_sentence(
    line: str, network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(network)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(line.split())
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error:")]
    assert code == 2 and len(errors) == 1 and BAD[line] in errors[0], errors
