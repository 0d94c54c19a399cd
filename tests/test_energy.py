"""The complete accounts against hand arithmetic, FLOP counters and themselves."""

from __future__ import annotations

import itertools
import json
import re
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import transpike
from families import FAMILIES, Family
from oracle import Block
from transpike._levels import LevelCounts, count_levels
from transpike.cli import main
from transpike.energy import EnergySheet, energy_sheet, information, load_prices
from transpike.energy.costs import COSTS
from transpike.energy.information import bits, distinct_values
from transpike.energy.kinds import Kind
from transpike.energy.ledger import Entry, ledger
from transpike.energy.sheet import shown_steps
from transpike.errors import ConfigError
from transpike.measure import Tally
from transpike.recipes import recipe_named
from transpike.table import decimals

STEPS = 3
BUILT_IN = ("horowitz_45nm", "davidson_furber_22fdx")
TABLES = Path(transpike.__file__).parent / "energy"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def converted(model: nn.Module, x: Any, recipe: str = "ecmt", **options: Any) -> transpike.SpikingModel:
    torch.manual_seed(1)
    return transpike.convert(model.double().eval(), [x], recipe_named(recipe, **{"levels": 3, **options}))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0.00"), (1234.567, "1,234.57"), (0.1, "0.10"), (0.0996, "0.0996"), (-0.00012345, "-0.000123")],
)
def test_small_numbers_are_not_shown_as_nothing(value: float, said: str) -> None:
    assert decimals(value) == said


def network(*layers: nn.Module, recipe: str = "ecmt", **options: Any) -> tuple[transpike.SpikingModel, Tally]:
    torch.manual_seed(1)
    x = randn(2, 3)
    snn = converted(nn.Sequential(*layers), x, recipe, **options)
    return snn, snn.simulate(x, STEPS).spikes


def entry(snn: transpike.SpikingModel, tally: Tally, name: str) -> Entry:
    """The entry whose module path or name is `name`."""
    (found,) = [e for e in ledger(snn, tally).entries if name in (e.module, e.node) and e.op != "neuron"]
    return found


def steps_of(counts: dict[Kind, Any]) -> dict[str, list[float]]:
    """Counts by step as plain lists, without what is 0 in every step."""
    found = {str(kind): np.broadcast_to(count, STEPS).tolist() for kind, count in counts.items()}
    return {kind: values for kind, values in found.items() if any(values)}


def once_of(counts: dict[Kind, Any]) -> dict[str, float]:
    return {str(kind): float(count) for kind, count in counts.items() if count}


# --- one network by hand ---------------------------------------------------------------------------------------------


def two_layers(recipe: str = "ecmt") -> tuple[transpike.SpikingModel, Tally, np.ndarray]:
    snn, tally = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), recipe=recipe)
    return snn, tally, tally.spikes["2:input"] / 2


def test_what_the_source_costs() -> None:
    snn, tally, _ = two_layers()
    first, relu, last = (entry(snn, tally, name) for name in "012")
    assert once_of(first.once) == {
        "multiply_accumulate": 12, "add": 4, "weight_words": 12 + 4, "activation_words": 3 + 4,
    }  # fmt: skip
    assert once_of(relu.once) == {"compare": 4, "activation_words": 8}
    assert once_of(last.once) == {"multiply_accumulate": 8, "add": 2, "weight_words": 8 + 2, "activation_words": 2}
    assert last.reads == (("2:input", 4),)


def test_before_the_first_neuron_everything_is_repeated_in_rate_code() -> None:
    snn, tally, _ = two_layers()
    assert steps_of(entry(snn, tally, "0").steps) == {
        "multiply_accumulate": [12] * 3, "add": [4] * 3, "weight_words": [16] * 3, "activation_words": [7] * 3,
    }  # fmt: skip
    snn, tally, _ = two_layers("differential")
    assert steps_of(entry(snn, tally, "0").steps)["multiply_accumulate"] == [12, 0, 0]


def test_spikes_through_weights() -> None:
    for recipe, bias in (("ecmt", [2] * 3), ("differential", [2, 0, 0])):
        snn, tally, spikes = two_layers(recipe)
        synaptic = (2 * spikes).tolist()  # two outputs
        assert spikes.any()
        assert steps_of(entry(snn, tally, "2").steps) == {
            "accumulate": synaptic, "shift": synaptic, "weight_words": synaptic, "add": bias,
            "activation_words": [2] * 3,
        }  # fmt: skip
        shared = {e.module: e for e in ledger(snn, tally, synapses_per_weight_read=4).entries if e.op != "neuron"}["2"]
        assert shared.steps[Kind.WEIGHT_WORDS].tolist() == (spikes / 2).tolist()


def test_neurons_and_output() -> None:
    snn, tally, spikes = two_layers()
    (neuron,) = [e for e in ledger(snn, tally).entries if e.op == "neuron"]
    assert snn.thresholds["2:input"].negative == 0, "behind a ReLU a neuron has levels of one sign"
    assert steps_of(neuron.steps) == {
        "integrate": (4 + spikes).tolist(), "compare": [12] * 3, "state_words": [8] * 3,
        "event_bits": ((2 + 2) * spikes).tolist(),  # one of 3 levels, one of 4 neurons
    }  # fmt: skip
    assert not neuron.once
    assert steps_of(entry(snn, tally, "output").steps) == {
        "add": [2] * 3, "state_words": [4] * 3, "multiply": [2, 0, 0],
    }  # fmt: skip


def test_compensation_of_a_nonlinear_layer() -> None:
    layers = (nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    snn, tally = network(*layers)
    gelu = entry(snn, tally, "3")
    assert gelu.treatment == "compensated"
    assert once_of(gelu.once) == {"multiply": 12, "add": 4, "error_function": 4, "activation_words": 8}
    assert steps_of(gelu.steps) == {
        "multiply": [12 + 8] * 3, "add": [4 + 8] * 3, "error_function": [4] * 3, "activation_words": [8] * 3,
        "state_words": [16] * 3,
    }  # fmt: skip
    snn, tally = network(*layers, recipe="differential")
    assert steps_of(entry(snn, tally, "3").steps)["multiply"] == [12] * 3, "sum code divides by nothing"


class Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 * torch.sigmoid(x))


def test_a_module_of_several_operators_keeps_one_sum_and_one_total() -> None:
    snn, tally = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Swish(), nn.Linear(4, 2))
    inside = [e for e in ledger(snn, tally).entries if e.module == "3"]
    assert len(inside) == 3
    assert {e.treatment for e in inside} == {"compensated"}
    assert sum(e.steps.get(Kind.STATE_WORDS, np.zeros(3)) for e in inside).tolist() == [2 * (4 + 4)] * 3


def test_products_of_spikes() -> None:
    x = randn(4, 4, 6)  # means over four samples are exact, in whatever order they are added
    snn = converted(Block(), x)
    tally = snn.simulate(x, STEPS).spikes
    (layer,) = [layer for layer in snn.plan.layers if layer.name == "attn:query*key"]
    product = entry(snn, tally, layer.node)
    operations = tally.operations["attn:query*key"] / 4
    spikes = (tally.spikes["attn:query"] + tally.spikes["attn:key"]) / 4
    assert once_of(product.once) == {"multiply_accumulate": 4 * 4 * 8, "activation_words": 16}
    assert product.reads == (("attn:query", 32), ("attn:key", 32))
    assert steps_of(product.steps) == {
        "accumulate": operations.tolist(), "shift": operations.tolist(), "integrate": spikes.tolist(),
        "state_words": (operations + 2 * spikes + 2 * 16).tolist(), "multiply": [32] * 3, "add": [16] * 3,
        "activation_words": [16] * 3,
    }  # fmt: skip
    assert product.saved is not None
    assert product.saved[Kind.STATE_WORDS].tolist() == np.maximum(operations - 64, 0).tolist()


def test_an_analog_head_stays_dense_at_every_step() -> None:
    snn, tally = network(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), head="analog"
    )  # fmt: skip
    head = entry(snn, tally, "4")
    assert steps_of(head.steps)["multiply_accumulate"] == [8] * 3
    assert "accumulate" not in head.steps


# --- costs -----------------------------------------------------------------------------------------------------------


def one_op(function: Any, *shape: int) -> dict[str, float]:
    """What the operators of `function` cost behind a linear layer, per element of its input."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(shape[-1], shape[-1], bias=False)
            self.last = nn.Linear(shape[-1], 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(function(self.first(x)))

    x = randn(2, *shape)
    snn = converted(Model(), x)
    entries = [e for e in ledger(snn, snn.simulate(x, 1).spikes).entries if e.module not in ("first", "last")]
    total: dict[str, float] = {}
    for e in entries:
        for kind, count in e.once.items():
            total[str(kind)] = total.get(str(kind), 0) + count
    return {kind: count for kind, count in total.items() if count and not kind.endswith("words")}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (torch.tanh, {"exponential": 12, "add": 24, "division": 12}),
        (lambda x: torch.softmax(x, -1), {"compare": 12, "add": 24, "exponential": 12, "multiply": 12, "division": 3}),
        (lambda x: x.pow(2) + x.pow(3), {"multiply": 36, "add": 12}),
        (lambda x: x / 3, {"multiply": 12}),
        (lambda x: x / (1 + x.abs()), {"division": 12, "add": 12}),
        (lambda x: x - x.mean(-1, keepdim=True), {"add": 24, "multiply": 3}),
        (nn.LayerNorm(4), {"add": 12 * 4 + 3, "multiply": 12 * 3 + 6, "square_root": 3, "division": 3}),
        (nn.RMSNorm(4), {"add": 12 + 3, "multiply": 12 * 3 + 3, "square_root": 3, "division": 3}),
        (nn.GELU("tanh"), {"multiply": 72, "add": 48, "exponential": 12, "division": 12}),
    ],
    ids=["tanh", "softmax", "pow", "by_constant", "softsign", "centre", "layer_norm", "rms_norm", "gelu_tanh"],
)
def test_elementwise_costs(function: Any, expected: dict[str, float]) -> None:
    """Three rows of four elements."""
    function = function.double() if isinstance(function, nn.Module) else function
    assert one_op(function, 3, 4) == expected


def test_pooling_costs() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 2)
    )  # fmt: skip
    x = randn(2, 1, 6, 6)
    snn = converted(model, x)
    tally = snn.simulate(x, STEPS).spikes
    assert once_of(entry(snn, tally, "1").once) == {"compare": 2 * 4 * 4, "activation_words": 2 * 16 + 8}
    assert once_of(entry(snn, tally, "2").once) == {"add": 2 * 4, "multiply": 2, "activation_words": 8 + 2}


# --- all families ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_fast_path() -> Any:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def in_batches(family: Family) -> Any:
    args, kwargs = family.inputs(2)
    return (*args, kwargs) if kwargs else args


@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_are_counted_whole(family: Family) -> None:
    """No operator is uncounted; the paper's row is the paper's account; dense counts are those of a FLOP counter."""
    model = family.build()
    snn = transpike.convert(model, [in_batches(family)], "ecmt", batch_dim=family.batch_dim)
    run = snn.simulate(in_batches(family), 2)
    sheet = snn.energy_sheet(run)
    assert sheet.uncounted == ()
    assert "at least" not in str(sheet)
    paper = snn.energy(run)
    np.testing.assert_allclose(sheet.comparison("FP32", "paper's").ratio, paper.ratio, rtol=1e-12)
    assert sheet.ledger.spiking()[Kind.ACCUMULATE].sum() == pytest.approx(paper.operations.sum())
    for comparison in sheet.comparisons:
        assert np.isfinite(comparison.ratio).all()
        assert (np.diff(comparison.spiking_pj) > 0).all()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        snn.captured.graph(*snn.captured.flatten(in_batches(family)))
    assert flops.get_total_flops() == 2 * 2 * matrix_operations(sheet)


def matrix_operations(sheet: EnergySheet) -> float:
    """Multiply-accumulates less those of gates, which FLOP counters leave out."""
    dense = [e for e in sheet.ledger.entries if not e.op.startswith("mul.")]
    return sum(e.once.get(Kind.MULTIPLY_ACCUMULATE, 0) for e in dense)


def all_fire(model: nn.Module, x: torch.Tensor) -> tuple[transpike.SpikingModel, Tally]:
    """Every neuron fires in the first step: positive inputs and weights, and thresholds below all activations."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    plan = transpike.plan(transpike.capture(model.double().eval(), x))
    thresholds = {site.name: 1e-3 for site in plan.sites}
    snn = transpike.convert(model, thresholds, recipe_named("ecmt", levels=1), example=x)
    return snn, snn.simulate(x, 1).spikes


def test_all_ones_are_the_dense_count() -> None:
    x = randn(2, 3).abs() + 0.1
    snn, tally = all_fire(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), x)
    assert {name: counts.tolist() for name, counts in tally.operations.items()} == {"2": [40], "4": [20]}
    counts = ledger(snn, tally)
    assert counts.spiking()[Kind.ACCUMULATE].tolist() == [20 + 10]
    assert counts.source()[Kind.MULTIPLY_ACCUMULATE] == 12 + 20 + 10
    assert snn.energy_sheet(tally).comparison("FP32", "paper's").ratio == pytest.approx(0.9 / 4.6)


def test_all_ones_of_a_padded_convolution_are_the_dense_count_less_the_padding() -> None:
    """FLOP counters multiply with the zeros around the image; no spike comes from there."""
    x = randn(2, 1, 5, 7).abs() + 0.1
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3))
    snn, tally = all_fire(model, x)
    counts = {e.module: e for e in ledger(snn, tally).entries if e.op != "neuron"}
    assert counts["2"].once[Kind.MULTIPLY_ACCUMULATE] == 3 * 2 * 9 * 5 * 7
    assert counts["2"].steps[Kind.ACCUMULATE].tolist() == [3 * 2 * (3 * 5 - 2) * (3 * 7 - 2)]
    assert counts["4"].steps[Kind.ACCUMULATE].tolist() == [counts["4"].once[Kind.MULTIPLY_ACCUMULATE]] == [3 * 9 * 15]


def test_a_model_of_one_batch_size_is_counted_per_sample() -> None:
    class Fixed(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.rows, self.first, self.last = rows, nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x)).reshape(self.rows, 4))

    free, fixed = (converted(Fixed(rows), randn(2, 3)) for rows in (-1, 2))
    assert (free.captured.free_batch, fixed.captured.free_batch) == (True, False)
    sheets = [snn.energy_sheet(snn.simulate(randn(2, 3), 1)) for snn in (free, fixed)]
    first, second = (once_of(sheet.ledger.source()) for sheet in sheets)
    assert first == second


# --- unknown costs ---------------------------------------------------------------------------------------------------


def test_an_unknown_cost_makes_the_total_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(3, 4, 6)
    snn = converted(Block(), x)
    run = snn.simulate(x, 2)
    whole = snn.energy_sheet(run)
    ops = {o.op for o in snn.plan.operators if o.module == "attn" and "softmax" in o.op}
    monkeypatch.delitem(COSTS, torch.ops.aten.softmax.int)
    less = snn.energy_sheet(run)
    (item,) = less.ledger.uncounted
    assert item.op in ops
    assert f"{item.op} in attn ({item.node})" in str(less)
    row = next(line for line in str(less).splitlines() if "compute-complete" in line)
    assert row.count("at least") == 2
    assert "at least" not in next(line for line in str(less).splitlines() if "paper's" in line)
    pair = [sheet.comparison("FP32", "compute-complete") for sheet in (less, whole)]
    assert pair[0].spiking_pj[-1] < pair[1].spiking_pj[-1]
    assert json.loads(json.dumps(less.to_json()))["uncounted"] == list(less.uncounted)


def test_an_allowed_unknown_operator_is_listed() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    snn, tally = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Odd(), nn.Linear(4, 2), allow_unknown=True)
    assert [name for name in snn.energy_sheet(tally).uncounted if "bessel_j0" in name]


def test_a_run_without_counts_is_refused() -> None:
    snn, tally = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="count=True"):
        snn.energy_sheet(snn.simulate(randn(2, 3), 2, count=False))
    other, _ = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="no counts"):
        other.energy_sheet(tally)


# --- prices ----------------------------------------------------------------------------------------------------------


def own_table(tmp_path: Path, *changes: tuple[str, str], base: str = "horowitz_45nm") -> Path:
    text = (TABLES / f"{base}.toml").read_text("utf-8")
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
        assert count == 1, pattern
    path = tmp_path / "chip.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_tables_name_every_source(name: str) -> None:
    prices = load_prices(name)
    assert set(prices.pj) == set(prices.sources)
    assert all(len(source) > 10 for source in prices.sources.values())


def test_a_table_is_only_a_file(tmp_path: Path) -> None:
    """Twice the price of everything is twice the energy and the same ratio."""
    snn, tally = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    text = (TABLES / "horowitz_45nm.toml").read_text("utf-8")
    path = tmp_path / "chip.toml"
    path.write_text(re.sub(r"pj = ([\d.]+)", lambda m: f"pj = {2 * float(m[1])}", text), "utf-8")
    one, two = (energy_sheet(snn, tally, load_prices(table)) for table in ("horowitz_45nm", path))
    for a, b in zip(one.comparisons, two.comparisons, strict=True):
        np.testing.assert_allclose(b.spiking_pj, 2 * a.spiking_pj)
        np.testing.assert_allclose(b.ratio, a.ratio)
    other = energy_sheet(snn, tally, load_prices("davidson_furber_22fdx"))
    assert other.comparison("FP32", "paper's").ratio[-1] == pytest.approx(
        one.paper.spikes_per_synapse[-1] * 0.060 / 0.293
    )


def test_energies_by_hand() -> None:
    snn, tally, spikes = two_layers()
    sheet = snn.energy_sheet(tally)
    total = spikes.cumsum()
    each = 12 * 4.6 + 4 * 0.9 + 4 * 0.9 + 2 * 0.9 + (4 + 12) * 0.9 + 2 * 0.9  # first, relu, bias, neurons, output
    compute = np.arange(1, 4) * each + total * (2 * 0.93 + 0.9) + 2 * 3.7
    source = 20 * 4.6 + 6 * 0.9 + 4 * 0.9
    row = sheet.comparison("FP32", "compute-complete")
    np.testing.assert_allclose(row.spiking_pj, compute)
    np.testing.assert_allclose(row.source_pj, source)
    word, weight, state = 32 * (5 / 32 + 0.25), 32 * 100 / 64, 5.0
    moved = np.arange(1, 4) * (16 * weight + (7 + 8 + 2) * word + (8 + 4) * state) + total * (2 * weight + 4 * 3.0)
    row = sheet.comparison("FP32", "with memory")
    np.testing.assert_allclose(row.spiking_pj, compute + moved)
    np.testing.assert_allclose(row.source_pj, source + 26 * weight + (7 + 8 + 2 + 4) * word)
    row = sheet.comparison("INT8", "compute-complete")
    integer = 12 * 0.3 + 4 * 0.9 + 4 * 0.1 + 2 * 0.9 + (4 + 12) * 0.1 + 2 * 0.9
    np.testing.assert_allclose(row.spiking_pj, np.arange(1, 4) * integer + total * (2 * 0.2 + 0.1) + 2 * 3.7)
    np.testing.assert_allclose(row.source_pj, 20 * 0.3 + 6 * 0.9 + 4 * 0.1)
    width = np.array([bits((1, 2, 4), t) for t in (1, 2, 3)])
    row = sheet.comparison("same information", "compute-complete")
    np.testing.assert_allclose(row.source_pj, 12 * 0.3 + 8 * (0.2 * width / 8 + 0.1) + 6 * 0.9 + 4 * 0.1)
    np.testing.assert_allclose(sheet.bits["2:input"], width)
    assert sheet.paper_share[-1] == pytest.approx(total[-1] * 2 * 0.9 / compute[-1])
    assert sum(pair[0] for pair in sheet.parts().values()) == pytest.approx(compute[-1])
    assert sum(pair[1] for pair in sheet.parts().values()) == pytest.approx(moved[-1])


def test_shared_reads_fetch_each_weight_once_a_step() -> None:
    x = randn(4, 9, 6).abs() + 0.1
    snn, tally = all_fire(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7)), x)
    sheet = snn.energy_sheet(tally)
    apart, shared = (sheet.comparison("FP32", f"with memory{more}").spiking_pj[0] for more in ("", ", shared reads"))
    assert apart - shared == pytest.approx((9 * 35 - 35) * 32 * 100 / 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((r"\[shift\].*?\n\n", ""), "has no price for shift"),
        ((r"pj = 0\.03\n", "pj = -0.03\n"), "positive pj under .shift., not -0.03"),
        ((r"pj = 0\.03\n", "pj = nan\n"), "positive pj under .shift., not nan"),
        ((r"pj = 0\.03\n", "pj = true\n"), "positive pj under .shift."),
        ((r"pj = 4\.6\n", "pj = 0\n"), "positive pj under .multiply_accumulate."),
        ((r'unit = "pJ"', 'unit = "nJ"'), "unit 'nJ'"),
        ((r"\[shift\]", "[shfit]"), "unknown kind 'shfit'"),
        ((r'source = "a power[^\n]*', 'source = ""'), "needs a source under .shift."),
        ((r"pj = 100\.0\nbits = 64", "pj = 100.0"), "of how many bits"),
        ((r"bits = 64", "bits = 0"), "bits = 0 under .weight_read."),
        ((r"hops = 1 ", "hops = -1 "), "positive number for hops"),
        ((r"hops = 1 ", "hop = 1 "), "assumptions. takes hops"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_prices(own_table(tmp_path, change))
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_table_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="davidson_furber_22fdx, horowitz_45nm"):
        load_prices("loihi")


# --- information -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "signs"), [*itertools.product((1, 2, 4), ((1,), (1, -1)))])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_distinct_values_by_enumeration(levels: int, signs: tuple[int, ...], steps: int) -> None:
    amplitudes = [sign * 0.375 * 2.0**k for sign in signs for k in range(levels)]
    sums = {sum(said) for said in itertools.product((0.0, *amplitudes), repeat=steps)}
    assert distinct_values(amplitudes, steps) == len(sums)
    assert bits(amplitudes, steps) == max(1, ceil(log2(len(sums))))


def test_distinct_values_of_known_neurons() -> None:
    assert [distinct_values([0.7], steps) for steps in (1, 3, 7)] == [2, 4, 8], "Yan et al.: T + 1"
    assert distinct_values([s * 2.0**k for s in (1, -1) for k in range(8)], 1) == 17
    unequal = [0.3 * 2.0**k for k in range(4)] + [-0.11 * 2.0**k for k in range(4)]
    equal = [s * 2.0**k for s in (1, -1) for k in range(4)]
    assert distinct_values(unequal, 5) == distinct_values(equal, 5), "unequal thresholds are no information"
    assert bits([], 4) == 1
    assert distinct_values([0.1, -0.1], 1, 8) == 17, "a window of 8 spikes of one worth"


@pytest.mark.parametrize("pulses", [1, 2])
def test_counts_of_more_steps_go_on_from_those_of_fewer(pulses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, and every move is made once."""
    amplitudes, asked = [0.5, 1.0, -1.5, -3.0, -6.0], (3, 1, 5, 2, 5)
    sums = {0: {0}}
    for t in range(1, 1 + max(asked) * pulses):  # in units of each sign's smallest level
        moved = {value + level for value in sums[t - 1] for level in (0, 1, 2, -1, -2, -4)}
        sums[t] = moved if pulses == 1 else {value for value in moved if -4 <= value <= 2}
    made = []
    for name in ("_anywhere", "_within_range"):
        walk = getattr(information, name)
        monkeypatch.setattr(information, name, lambda levels, walk=walk: (made.append(n) or n for n in walk(levels)))
    information._counts.cache_clear()
    assert [distinct_values(amplitudes, t, pulses) for t in asked] == [len(sums[t * pulses]) for t in asked]
    assert len(made) == max(asked) * pulses


# --- break-even, tables, levels --------------------------------------------------------------------------------------


def test_break_even_points() -> None:
    snn, tally, _ = two_layers()
    sheet = snn.energy_sheet(tally)
    points = {point.name: point for point in sheet.break_evens}
    assert len(points) == 6
    assert points["compute only, FP32 against FP32"].low == pytest.approx(4.6 / 0.9)
    assert points["compute only, integers against INT8"].low == pytest.approx(3.0)
    point = points["same silicon, one word per neuron"]
    assert point.value == pytest.approx(tally.spikes_per_neuron().sum())
    assert point.verdict == ("below" if point.value < 1.72 else "above")
    assert all(point.source for point in sheet.break_evens)


def test_the_sheet_prints_and_is_json() -> None:
    snn, tally, _ = two_layers()
    sheet = snn.energy_sheet(tally)
    text = str(sheet)
    assert text.count("compute-complete") == 4, "three opponents and a note"
    assert "Dampfhoffer" in text
    back = json.loads(json.dumps(sheet.to_json(), allow_nan=False))
    assert len(back["comparisons"]) == 3 * 4
    assert back["counts"]["source"]["multiply_accumulate"] == 20
    assert shown_steps(3) == [1, 2, 3]
    assert shown_steps(20) == [1, 2, 4, 8, 16, 20]


def test_levels_add_up_to_the_tally() -> None:
    x = randn(3, 4, 6)
    snn = converted(Block(), x)
    tally, total = snn.simulate(x, STEPS).spikes, LevelCounts(STEPS)
    for part in x.split([1, 2]):
        total += count_levels(snn, part, steps=STEPS)
    assert total.samples == 3
    for site, counts in total.counts.items():
        assert counts.sum(1).tolist() == tally.spikes[site].tolist()
    assert "2^-2" in str(total)
    with pytest.raises(ValueError, match="another run"):
        total += count_levels(snn, x, steps=1)


def test_levels_by_hand() -> None:
    """One step of known drives: theta 1, levels 1, 1/2, 1/4 of both signs."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    nn.init.eye_(model[0].weight)
    x = torch.tensor([[0.1, 0.26, 0.5, -0.9, -0.3, 0.95]], dtype=torch.float64).atanh()
    snn = transpike.convert(model, {"2:input": 1.0}, recipe_named("ecmt", levels=3), example=x)
    found = count_levels(snn, x, steps=1)
    assert found.amplitudes["2:input"] == (-1, -0.5, -0.25, 0.25, 0.5, 1)
    assert found.counts["2:input"].tolist() == [[1, 0, 1, 1, 1, 1]]


# --- command line ----------------------------------------------------------------------------------------------------


def test_the_command_line_prices_with_a_table_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_table(tmp_path, (r'name = "horowitz-45nm"', 'name = "my-chip"'), (r"pj = 0\.03\n", "pj = 0\n"))
    monkeypatch.chdir(tmp_path)
    wanted = [
        "eval",
        "digits",
        "--data",
        "digits",
        "--limit",
        "40",
        "--steps",
        "2",
        "--json",
        "r.json",
        "--sheet",
        "--prices",
    ]
    code, printed = main([*wanted, "chip.toml"]), capsys.readouterr()
    assert code == 0, printed.err
    assert "prices: my-chip" in printed.out
    assert printed.out.index("the paper's account") < printed.out.index("ratio to the opponent")
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    sheet = report["energy_sheet"]
    assert (sheet["prices"]["name"], sheet["prices"]["pj"]["shift"]) == ("my-chip", 0)
    (row,) = [c for c in sheet["comparisons"] if (c["opponent"], c["account"]) == ("FP32", "paper's")]
    assert row["ratio"] == pytest.approx(report["energy"]["ratio"])
    assert main([*wanted, "nowhere.toml"]) == 2
    assert "no price table nowhere.toml" in capsys.readouterr().err
