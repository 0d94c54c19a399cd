"""The residual cascade: a neuron that fires several times in a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import transpike
from transpike._execute import run_body, run_prefix
from transpike._levels import count_levels
from transpike.codecs.events import read_events, write_events
from transpike.errors import ConfigError, ModelError
from transpike.neurons import Differential, advance, trajectory
from transpike.neurons.differential import one_by_one
from transpike.neurons.staircase import Shelf, staircase
from transpike.recipes import balanced
from transpike.types import Threshold

SMALLEST, LEVELS = 0.25, 8
THRESHOLD = Threshold(SMALLEST * 2 ** (LEVELS - 1), SMALLEST * 2 ** (LEVELS - 1))


def nonadjacent_weight(number: int) -> int:
    """Non-zero digits of the non-adjacent form, the fewest signed powers of two that sum to `number`."""
    return (number ^ (3 * number)).bit_count()


def test_enough_pulses_round_to_the_nearest_multiple_in_the_fewest_spikes() -> None:
    values = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    values = values[((values / SMALLEST) % 1 - 0.5).abs() > 1e-6]  # no ties
    out, fired, _ = trajectory(Differential(LEVELS, 0.5, pulses=8), values[None], THRESHOLD, masks=True)
    multiples = (values / SMALLEST).round()
    assert torch.equal(out[0], multiples * SMALLEST)
    assert fired is not None and fired.dtype == torch.uint8
    assert fired[0].tolist() == [nonadjacent_weight(abs(int(k))) for k in multiples]


@pytest.mark.parametrize("pulses", [1, 2, 3])
def test_pulses_are_steps_on_the_same_input(pulses: int) -> None:
    """Twin: `pulses` steps of the one-spike neuron for every step of the cascade."""
    means = torch.randn(4, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 8
    out, fired, spoken = trajectory(Differential(LEVELS, 0.5, pulses), means, THRESHOLD, masks=True)
    twin = Differential(LEVELS, 0.5)
    state = None
    for t in range(4):
        count = torch.zeros(200, dtype=torch.int64)
        for _ in range(pulses):
            state, mean, emitted = twin.step(state, t + 1, means[t], THRESHOLD)
            count += emitted != 0
        assert torch.equal(out[t], mean)
        assert fired is not None and torch.equal(fired[t].long(), count)
        assert spoken is not None and torch.equal(spoken[t], state != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reach", [(-1.0, 1.0), (0.0, 1.0), (-1.0, 0.0)], ids=str)
@pytest.mark.parametrize(("levels", "cutoff", "pulses"), [(8, 0.75, 6), (8, 0.5, 6), (1, 1.0, 4), (5, 0.625, 3)])
def test_the_staircase_is_firing_after_firing(
    levels: int, cutoff: float, pulses: int, reach: tuple[float, float], dtype: torch.dtype
) -> None:
    """All but the last, bit for bit: on every tie, just beside it, between, and far out of range; nothing finite of
    what is not."""
    neuron, far = Differential(levels, cutoff, pulses), 2.0 * pulses
    threshold = Threshold(float(reach[1] != 0), float(reach[0] != 0))
    ladder = neuron.parameters(threshold, dtype)[4:]
    grid = torch.arange(-far, far, 2.0 ** -(levels + 3), dtype=dtype)
    beside = [torch.nextafter(grid, torch.full_like(grid, end)) for end in (-torch.inf, torch.inf)]
    values = torch.cat([grid, *beside, torch.randn(5000, generator=torch.Generator().manual_seed(5)).to(dtype)])
    stairs = neuron.stairs(threshold, dtype, values.device)
    assert stairs is not None
    said, spikes = stairs.of(values, count=True)
    twin_said, twin_spikes = one_by_one(values, pulses - 1, ladder, reach, True)
    assert torch.equal(said, twin_said)
    assert spikes is not None and twin_spikes is not None and torch.equal(spikes, twin_spikes.to(dtype))
    endless = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    assert stairs.of(endless, count=False)[0].isnan().all()


def test_the_staircase_of_many_levels_is_firing_after_firing() -> None:
    """Its index has 23 bits, which float32 holds: on ties, beside them, and between."""
    neuron, generator = Differential(17, 0.75, 8), torch.Generator().manual_seed(6)
    ties = torch.randint(-8 << 18, 8 << 18, (50_000,), generator=generator) / 2.0**18
    beside = [torch.nextafter(ties, torch.full_like(ties, end)) for end in (-torch.inf, torch.inf)]
    values = torch.cat([ties, *beside, torch.randn(50_000, generator=generator)])
    stairs = neuron.stairs(Threshold(1.0, 1.0), torch.float32, values.device)
    assert stairs is not None and stairs.said.shape[0] < 1 << 23
    said, spikes = stairs.of(values, count=True)
    ladder = neuron.parameters(Threshold(1.0, 1.0), torch.float32)[4:]
    twin_said, twin_spikes = one_by_one(values, 7, ladder, (-1.0, 1.0), True)
    assert spikes is not None and twin_spikes is not None
    assert torch.equal(said, twin_said) and torch.equal(spikes, twin_spikes.float())


def test_tables_used_longest_ago_go_first() -> None:
    table = staircase(lambda values: (values, values), 3, 0.5, 2, torch.float32, torch.device("cpu"))
    assert table is not None
    shelf, made = Shelf(2 * table.nbytes), []

    def get(key: int) -> None:
        assert shelf.get(key, lambda: made.append(key) or table) is table  # type: ignore[func-returns-value]

    for key in (1, 2, 1, 3, 1, 2):
        get(key)
    assert made == [1, 2, 3, 2] and list(shelf.held) == [1, 2] and shelf.nbytes == 2 * table.nbytes
    shelf.most = 1
    get(4)
    assert list(shelf.held) == [4], "what is asked for is kept"


@pytest.mark.parametrize(
    ("neuron", "why"),
    [
        (Differential(8, 0.5), "one firing is quicker as it is"),
        (Differential(8, 0.5, 2), "one firing before the last is quicker as it is"),
        (Differential(8, 0.7, 6), "steps at no multiple of an eighth"),
        (Differential(20, 0.5, 6), "too many entries"),
    ],
)
def test_what_has_no_staircase_fires_one_by_one(neuron: Differential, why: str) -> None:
    assert neuron.stairs(Threshold(1.0, 1.0), torch.float32, torch.device("cpu")) is None, why


def test_a_constant_input_is_said_once() -> None:
    means = torch.randn(300, generator=torch.Generator().manual_seed(2)).expand(5, -1) * 8
    _, fired, _ = trajectory(Differential(LEVELS, 0.75, pulses=8), means, THRESHOLD, masks=True)
    assert fired is not None and fired[0].any() and not fired[1:].any()


@pytest.mark.parametrize(("levels", "pulses"), [(16, 12), (18, 24)], ids=["looked up", "one by one"])
def test_what_rounding_hid_is_said_in_the_same_step(levels: int, pulses: int) -> None:
    """Ratios of 24 bits, of which the levels take 18: without a last look at the membrane some would fire later."""
    means = torch.randn(200_000, generator=torch.Generator().manual_seed(7)).expand(2, -1)
    threshold = Threshold(1.4140625, 1.4140625)
    out, fired, _ = trajectory(Differential(levels, 0.75, pulses), means, threshold, masks=True)
    assert fired is not None and fired[0].any() and not fired[1].any()
    smallest = threshold.positive * 2.0 ** (1 - levels)
    assert (out[0] - means[0]).abs().max() < 0.75 * smallest


def test_balanced_fires_often_enough_for_every_second_level() -> None:
    """1 + 1/4 + ... + 2^-14, which takes eight: six leave two to the next step."""
    value = sum(2.0 ** -(2 * k) for k in range(8))
    for pulses, fired in ((balanced().neuron.pulses, [8, 0]), (6, [6, 2])):
        means = torch.full((2, 1), value)
        _, spikes, _ = trajectory(Differential(15, 0.75, pulses), means, Threshold(1.0, 1.0), masks=True)
        assert spikes is not None and spikes.flatten().tolist() == fired


@pytest.mark.parametrize("pulses", [0, -1, 25, 2.0, True, None])
def test_bad_pulses_are_refused(pulses: object) -> None:
    with pytest.raises(ConfigError, match="pulses must be a whole number from 1 to 24"):
        Differential(8, 0.5, pulses)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def network() -> transpike.SpikingModel:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return transpike.convert(transpike.zoo.load_model("digits")[0].double(), [images.double()], "cascade")


def test_folded_is_streaming_in_outputs_and_counts(network: transpike.SpikingModel) -> None:
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    folded, streaming = (network.simulate(images, 3, mode=mode) for mode in ("folded", "streaming"))
    assert torch.allclose(folded.outputs, streaming.outputs, atol=1e-9)
    assert folded.spikes.to_json() == streaming.spikes.to_json()
    assert folded.spikes.spikes_per_neuron()[0] > 1, "several spikes per neuron and step"


def test_products_in_two_terms_count_what_the_spikes_say(network: transpike.SpikingModel) -> None:
    """Spike x new sum + old sum x spike, by a second product of the counts themselves."""
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    layer = next(layer for layer in network.plan.layers if layer.module.endswith("attn") and "query" in str(layer))
    sites = [operand.site for operand in layer.operands]
    trains: dict[str, list[torch.Tensor]] = {site: [] for site in sites if site}
    sums: dict[str, list[torch.Tensor]] = {site: [] for site in sites if site}
    state: dict[str, torch.Tensor] = {}
    crossing = run_prefix(network.program, network.prepare(images))
    for t in (1, 2):

        def fire(marker: torch.fx.Node, value: torch.Tensor, t: int = t) -> torch.Tensor:
            site = str(marker.args[1])
            args = (network.neurons[site], state.get(site), t, value, network.thresholds[site])
            state[site], out, emitted = advance(*args)
            if site in trains:
                trains[site].append(sum((e != 0).double() for e in emitted))  # type: ignore[arg-type]
                sums[site].append((state[site] != 0).double())
            return out

        run_body(network.program, crossing, fire)
    (a, b), (sum_a, sum_b) = ([trains[s] for s in sites], [sums[s] for s in sites])  # type: ignore[index]
    expected = []
    for t in range(2):
        before = sum_a[t - 1] if t else torch.zeros_like(sum_a[0])
        expected.append(int(_pairs(a[t], sum_b[t]) + _pairs(before, b[t])))
    counted = network.simulate(images, 2).spikes.operations[layer.name]
    assert counted.tolist() == expected


def _pairs(query: torch.Tensor, key: torch.Tensor) -> float:
    """Every element of one row against every element of the other: q k^T, whatever side the graph transposes."""
    if query.shape[-1] != key.shape[-2]:
        key = key.transpose(-1, -2)
    return float((query @ key).sum())


def test_levels_add_up_to_the_spikes(network: transpike.SpikingModel) -> None:
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    levels = count_levels(network, images, steps=2)
    spikes = network.simulate(images, 2).spikes.spikes
    assert {site: counts.sum(1).tolist() for site, counts in levels.counts.items()} == {
        site: counts.tolist() for site, counts in spikes.items()
    }


def test_events_of_a_cascade_add_up(network: transpike.SpikingModel, tmp_path) -> None:
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    events = read_events(write_events(network, images, tmp_path / "spikes.tpk", steps=2))
    counted = {site: np.asarray(counts).reshape(2, -1).sum(1) for site, counts in events.counts().items()}
    spikes = network.simulate(images, 2).spikes.spikes
    assert {site: counts.tolist() for site, counts in counted.items()} == {s: c.tolist() for s, c in spikes.items()}


def test_nir_refuses_it_by_name() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    snn = transpike.convert(model, [torch.randn(4, 4)], "cascade")
    nir_file = pytest.importorskip("transpike.codecs.nir_file")
    with pytest.raises(ModelError, match="may fire several times in a step"):
        nir_file.code_of(snn)
