"""MBE: the identity neuron against its window, the fits against their equations, and networks that use them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import transpike
from oracle import Block
from transpike._literal import Literal
from transpike._substitute import substituted
from transpike.energy.bases import RULES
from transpike.energy.kinds import Kind
from transpike.energy.ledger import AT_MOST, ledger
from transpike.errors import ConfigError
from transpike.multi_basis import FUNCTIONS, SUBSTITUTES, Approximation, Fit, fit, spike_counts, table
from transpike.multi_basis.bank import BITS
from transpike.multi_basis.functions import FIXED, RANGED
from transpike.multi_basis.operators import evaluate, layer_norm, reciprocal, rms_norm, rsqrt, softmax
from transpike.neurons import FewSpikes, trajectory
from transpike.neurons.exponential_decay import ExponentialDecay
from transpike.recipes import Recipe, recipe_named
from transpike.report.comparison import comparison_tables
from transpike.types import Threshold

SYMMETRIC, LOPSIDED = Threshold(1.5, 1.5), Threshold(1.5, 0.375)
DECAYS = (0.5, 0.6, 0.75)
DOMAINS = {"gelu": (-8.0, 4.0), "gelu_tanh": (-8.0, 4.0), "silu": (-8.0, 8.0), "tanh": (-4.0, 2.0)}


def values(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the identity neuron ---------------------------------------------------------------------------------------------


def window(value: float, theta: float, levels: int, decay: float) -> tuple[float, int]:
    """The equations: one membrane, thresholds that decay, at most one spike for each of them, in their order."""
    ladder = [theta * decay**k for k in range(1, levels + 1)]
    membrane, said, spikes = abs(value) + ladder[-1] / 2, 0.0, 0
    for level in ladder:
        if membrane >= level:
            membrane, said, spikes = membrane - level, said + level, spikes + 1
    return math.copysign(said, value), spikes


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("levels", [1, 3, 8, 12])
def test_a_step_is_the_window_of_decays(levels: int, decay: float) -> None:
    room = 0.999 * (1 - decay**levels / 2)  # in range
    drive = torch.cat([values(300), -values(300, 1)]) * 1.5 * room
    out, fired, _ = trajectory(ExponentialDecay(levels, decay), drive[None], SYMMETRIC, masks=True)
    assert fired is not None
    expected = [window(value, 1.5, levels, decay) for value in drive.tolist()]
    assert torch.allclose(out[0], torch.tensor([said for said, _ in expected], dtype=torch.float64), atol=1e-12)
    assert fired[0].tolist() == [spikes for _, spikes in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halving_is_few_spikes_with_half_the_threshold(dtype: torch.dtype) -> None:
    drive = (random(2, 500) * 2).to(dtype)
    half = Threshold(LOPSIDED.positive / 2, LOPSIDED.negative / 2)
    ours = trajectory(ExponentialDecay(8), drive, LOPSIDED, masks=True)
    theirs = trajectory(FewSpikes(8), drive, half, masks=True)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
    assert set(ExponentialDecay(8).amplitudes(LOPSIDED)) == set(FewSpikes(8).amplitudes(half))


@pytest.mark.parametrize("threshold", [LOPSIDED, Threshold(1.0, 0.0), Threshold(0.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_definitions_of_the_levels_agree(dtype: torch.dtype, threshold: Threshold) -> None:
    """`quantise` searches, `level` is compiled; and what is emitted is one of the amplitudes, exactly."""
    neuron = ExponentialDecay(5, 0.7)
    amplitudes = torch.tensor([0.0, *neuron.amplitudes(threshold)], dtype=dtype)
    potential = torch.cat([(random(500) * 2).to(dtype), amplitudes, amplitudes / 2, -amplitudes])
    numbers = [float(number) and torch.tensor(number, dtype=dtype) for number in neuron.parameters(threshold, dtype)]
    searched = neuron.quantise(potential.clone(), threshold)
    assert torch.equal(searched, neuron.level(potential.clone(), *numbers))
    assert torch.isin(searched, amplitudes).all()


@pytest.mark.parametrize("decay", DECAYS)
def test_longer_windows_are_better_and_the_error_is_bounded(decay: float) -> None:
    drive = values(2000)[None] * 0.9
    errors = []
    for levels in (4, 6, 8, 10, 12, 16):
        error = (trajectory(ExponentialDecay(levels, decay), drive, Threshold(1, 1))[0] - drive).abs()
        assert float(error.max()) <= decay**levels * (0.5 if decay == 0.5 else 1) + 1e-12
        errors.append(float(error.mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("decay", [0.4, 1.0, "half"])
def test_decays_without_a_code_are_refused(decay: object) -> None:
    with pytest.raises(ConfigError, match="decay must be a number from 0.5 to below 1"):
        ExponentialDecay(8, decay)  # type: ignore[arg-type]


# --- the fit ---------------------------------------------------------------------------------------------------------


def fitted(name: str, bases: int, window: int = 16) -> Fit:
    return fit(name, bases, window, *(DOMAINS.get(name) or FIXED[name][1:]))


def twin(found: Fit, x: float) -> tuple[float, int]:
    """Equations 4 to 8, one number at a time. The membrane is a fixed-point number."""
    if len(found.banks) == 2:
        bank, membrane = (found.banks[0], x / found.high) if x >= 0 else (found.banks[1], x / found.low)
    else:
        bank, membrane = found.banks[0], (x - found.low) / (found.high - found.low)
    start = min(math.floor(membrane * 2**BITS), 2**BITS - 1) / 2**BITS
    output, spikes = found.bias, 0
    for (log_theta, *rates), weight in zip(bank.parameters.T.tolist(), bank.weights.tolist(), strict=True):
        u, o = start, 0.0
        for t in range(found.window):
            threshold, reset, out = (math.exp(log_theta) * math.exp(-t * rate) for rate in rates)
            if u >= threshold:
                u, o, spikes = u - reset, o + out, spikes + 1
        output += weight * o
    return output, spikes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_is_the_sequential_neuron(name: str) -> None:
    found = fitted(name, 4, 8)
    x = found.low + (found.high - found.low) * values(60)
    expected = [twin(found, value) for value in x.tolist()]
    assert torch.allclose(evaluate(found, x), torch.tensor([y for y, _ in expected], dtype=torch.float64), atol=1e-9)
    assert table(found).shape == spike_counts(found).shape == (len(found.banks) * 2**BITS,)
    place = [int(min(v / (found.high if v >= 0 else found.low), 1 - 2**-BITS) * 2**BITS) for v in x.tolist()]
    if name in RANGED:
        index = [p if v >= 0 else 2**BITS + p for p, v in zip(place, x.tolist(), strict=True)]
        assert spike_counts(found)[index].tolist() == [spikes for _, spikes in expected]


# Mean square errors of table X of arXiv 2508.07710 for 8 bases.
PAPER = {"exp2": 5.3e-5, "reciprocal": 4.4e-5, "rsqrt": 4.9e-5}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_more_bases_fit_better(name: str) -> None:
    errors = [fitted(name, bases).error for bases in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 5 * errors[-1]
    assert errors[-1] < PAPER.get(name, 1e-4)
    found = fitted(name, 8)
    x = torch.linspace(found.low, found.high, 30001, dtype=torch.float64)
    elsewhere = float((evaluate(found, x) - FUNCTIONS[name](x)).square().mean())
    assert elsewhere == pytest.approx(found.error, rel=0.05)


def test_the_published_range_of_gelu() -> None:
    assert fit("gelu", 8, 16, -120.0, 10.0).error < 2.3e-4  # the paper's, for 4 bases; here 4 for each sign


@pytest.mark.parametrize("name", ["gelu", "rsqrt"])
def test_short_windows_are_worse(name: str) -> None:
    errors = [fitted(name, 8, window).error for window in (4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_a_fit_is_always_the_same() -> None:
    one, other = (fit.__wrapped__("gelu", 4, 8, -4.0, 4.0) for _ in range(2))
    assert torch.equal(table(one), table(other)) and one.error == other.error


def test_wrong_fits_are_refused() -> None:
    with pytest.raises(ConfigError, match="no function named 'sine'"):
        fit("sine", 4, 8, 0.0, 1.0)
    with pytest.raises(ConfigError, match="gelu has two banks"):
        fit("gelu", 3, 8, -1.0, 1.0)


def test_beyond_the_range_lies_its_end_and_nan_stays_nan() -> None:
    found = fitted("gelu", 8)
    ends = evaluate(found, torch.tensor([found.high, 2 * found.high, found.low, 2 * found.low]))
    assert ends[0] == ends[1] and ends[2] == ends[3]
    assert evaluate(found, torch.tensor([math.nan, math.inf])).isnan().all()


# --- operators -------------------------------------------------------------------------------------------------------

SETTINGS = {"bases": 8, "window": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_and_reciprocals_of_any_size(dtype: torch.dtype) -> None:
    x = torch.logspace(-6, 6, 999, dtype=dtype)
    for ours, exact in ((rsqrt, torch.rsqrt), (reciprocal, torch.reciprocal)):
        assert float((ours(x, **SETTINGS) / exact(x) - 1).abs().max()) < 3e-3
    assert rsqrt(torch.tensor([0.0, -1.0]), **SETTINGS).tolist() == pytest.approx([math.inf, math.nan], nan_ok=True)


def test_softmax_with_masks() -> None:
    x = random(2, 3, 6) * 5
    x[0, 0, 2:], x[0, 1], x[1, 2, 0] = -math.inf, -math.inf, torch.finfo(x.dtype).min
    ours, exact = softmax(x, -1, **SETTINGS), torch.ops.aten._safe_softmax.default(x, -1)
    assert float((ours - exact).abs().max()) < 3e-3
    assert (ours[x == -math.inf] == 0).all() and not ours.isnan().any()
    assert softmax(x.float(), -1, torch.float64, **SETTINGS).dtype == torch.float64
    assert softmax(torch.tensor([1.0, math.nan]), -1, **SETTINGS).isnan().all()


def test_normalisation() -> None:
    x, weight, bias = random(4, 5, 8) * 3 + 1, random(8, seed=1), random(8, seed=2)
    exact = nn.functional.layer_norm(x, [8], weight, bias, 1e-6)
    assert float((layer_norm(x, [8], weight, bias, 1e-6, False, **SETTINGS) - exact).abs().max()) < 2e-2
    assert float((rms_norm(x, [8], weight, **SETTINGS) - nn.functional.rms_norm(x, [8], weight)).abs().max()) < 2e-2


# --- networks --------------------------------------------------------------------------------------------------------


def block() -> tuple[Block, torch.Tensor]:
    torch.manual_seed(0)
    return Block().double().eval(), random(8, 5, 6)


def error(bases: int, levels: int = 16) -> float:
    net, x = block()
    snn = transpike.convert(net, [x], recipe_named("mbe", bases=bases, levels=levels))
    with torch.no_grad():
        return float((snn.simulate(x).outputs[-1] - net(x)).abs().max())


def test_a_transformer_of_approximations_is_the_source_within_the_fits_error() -> None:
    errors = [error(bases) for bases in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.1 and errors[-1] < 3e-3
    assert error(0) < errors[-1] / 10  # exact operators


def test_longer_windows_give_better_networks() -> None:
    errors = [error(0, levels) for levels in (4, 8, 12, 16)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 100 * errors[-1]


@pytest.mark.parametrize("decay", [0.5, 0.6])
def test_the_network_in_spikes_is_the_fast_one(decay: float) -> None:
    net, x = block()
    snn = transpike.convert(net, [x], recipe_named("mbe", levels=4, decay=decay))
    fast, streamed = (snn.simulate(x, 3, mode=mode) for mode in ("folded", "streaming"))
    literal, _ = Literal(snn, check=True).run(x, steps=3)
    assert float((literal.outputs - fast.outputs).abs().max()) < 1e-10
    assert torch.equal(streamed.outputs, fast.outputs)
    assert all((fast.spikes.spikes[site] == counts).all() for site, counts in literal.spikes.spikes.items())


def test_the_saved_network_gives_the_same(tmp_path: Path) -> None:
    net, x = block()
    snn = transpike.convert(net, [x], "mbe")
    loaded = transpike.load(snn.save_pretrained(tmp_path / "net"), model=net)
    assert loaded.recipe == snn.recipe and loaded.recipe.operators is not None
    assert loaded.recipe.operators.ranges.keys() == {"gelu"}
    anew = transpike.convert(net, loaded.calibration, "mbe", example=x)
    for network in (loaded, anew):
        assert torch.equal(network.simulate(x).outputs, snn.simulate(x).outputs)
    assert loaded.plan.notes == snn.plan.notes


def test_given_thresholds_need_the_ranges_too() -> None:
    net, x = block()
    snn = transpike.convert(net, [x], "mbe")
    with pytest.raises(ConfigError, match="no range is known for operator gelu; calibrate"):
        transpike.convert(net, snn.thresholds, "mbe", example=x)
    again = transpike.convert(net, snn.thresholds, snn.recipe, example=x)
    assert torch.equal(again.simulate(x).outputs, snn.simulate(x).outputs)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.tanh(self.first(x)))
        hidden = nn.functional.silu(hidden) * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-5)
        return self.third(torch.relu(hidden))


def test_what_stays_exact_is_named() -> None:
    torch.manual_seed(0)
    net, x = Odd().double().eval(), random(16, 6)
    snn = transpike.convert(net, [x], "mbe")
    notes = "\n".join(snn.plan.notes)
    assert "approximated: rsqrt.default (1), silu.default (1), tanh.default (1)" in notes
    assert "kept exact, without a fit:" in notes and "relu.default (1)" in notes and "square.default (1)" in notes
    with torch.no_grad():
        assert float((snn.simulate(x).outputs[-1] - net(x)).abs().max()) < 2e-2
    assert snn.approximated == {"tanh", "silu", "rsqrt"}


def test_other_recipes_run_the_graph_they_ran() -> None:
    net, x = block()
    snn = transpike.convert(net, [x], "few-spikes")
    assert snn.recipe.operators is None and not snn.approximated
    assert substituted(snn.program.module, snn.plan, snn.recipe) is snn.program.module
    assert not any("approximated" in note for note in snn.plan.notes)


def test_recipes_survive_json_and_refuse_what_is_none() -> None:
    recipe = replace(recipe_named("mbe"), operators=Approximation(4, 8, {"gelu_1": (-1.5, 2.0)}))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert Recipe.from_json({k: v for k, v in recipe.to_json().items() if k != "operators"}).operators is None
    for wrong in ({"bases": 3}, {"bases": 34}, {"window": 0}, {"ranges": {"gelu": (1.0, -1.0)}}):
        with pytest.raises(ConfigError, match="bases must|window must|the range of operator gelu must"):
            Approximation(**wrong)
    with pytest.raises(ConfigError, match="not a recipe"):
        Recipe.from_json({**recipe.to_json(), "operators": {"bases": 4}})


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_approximations_are_priced_by_their_spikes() -> None:
    net, x = block()
    snn = transpike.convert(net, [x], recipe_named("mbe", bases=4, levels=8))
    exact = transpike.convert(net, [x], recipe_named("mbe", bases=0, levels=8))
    tally = snn.simulate(x, 2).spikes
    entries = {entry.node: entry for entry in ledger(snn, tally).entries}
    hidden = 5 * 12  # tokens x features
    gelu = entries["gelu"]
    assert gelu.treatment == AT_MOST
    assert gelu.steps[Kind.ACCUMULATE].tolist() == [hidden * 2 * 8] * 2  # the bank of one sign: 2 bases, 8 decays
    assert gelu.steps[Kind.COMPARE].tolist() == [hidden * 4 * 8] * 2
    assert Kind.ERROR_FUNCTION not in gelu.steps and gelu.once[Kind.ERROR_FUNCTION] == hidden
    softmax_entry = next(e for e in entries.values() if e.op == "softmax.int")
    assert softmax_entry.steps[Kind.ACCUMULATE].tolist() == [(5 * 5 + 5) * 4 * 8] * 2  # each score, and each row
    first = next(e for e in entries.values() if e.op == "layer_norm.default")  # before the first neuron: once
    assert first.steps[Kind.ACCUMULATE].tolist() == [5 * 4 * 8, 0]
    bound = int(spike_counts(fit("gelu", 4, 8, -2.0, 2.0)).max())
    assert bound <= 2 * 8
    sheet, other = snn.energy_sheet(tally), exact.energy_sheet(exact.simulate(x, 2).spikes)
    complete, plain = (s.comparison("FP32", "compute-complete") for s in (sheet, other))
    assert complete.at_most and not plain.at_most and not sheet.comparison("FP32", "paper's").at_most
    assert complete.spiking_pj[0] > plain.spiking_pj[0] and complete.source_pj[0] == plain.source_pj[0]
    assert "at most " in str(sheet) and AT_MOST in str(sheet) and AT_MOST not in str(other)


def test_every_substitute_has_a_price() -> None:
    assert RULES.keys() == SUBSTITUTES.keys()


def test_comparisons_say_where_a_ratio_is_a_bound() -> None:
    net, x = block()
    recipes = {"mbe": recipe_named("mbe", bases=2, levels=4), "exact": recipe_named("mbe", bases=0, levels=4)}
    labelled = SimpleNamespace(inputs=x, labels=torch.zeros(8, dtype=torch.int64))
    compared = transpike.compare(net, [x], [labelled], recipes, steps=[1])
    (table, *_) = comparison_tables(compared)
    rows = {row[0]: row[-3:] for row in table.rows}
    assert [cell.startswith("<=") for cell in rows["mbe"]] == [False, True, True]
    assert not any(cell.startswith("<=") for cell in rows["exact"])
    assert any(note.startswith("<=: every basis") for note in table.notes)


@pytest.mark.parametrize(("decay", "kind"), [(0.5, Kind.SHIFT), (0.6, Kind.MULTIPLY)])
def test_levels_that_are_no_powers_of_two_multiply_weights(decay: float, kind: Kind) -> None:
    net, x = block()
    snn = transpike.convert(net, [x], recipe_named("mbe", bases=0, levels=4, decay=decay))
    tally = snn.simulate(x, 1).spikes
    fc1 = next(entry for entry in ledger(snn, tally).entries if entry.module == "fc1" and entry.op == "linear.default")
    assert fc1.steps[kind].tolist() == fc1.steps[Kind.ACCUMULATE].tolist()
    assert {Kind.SHIFT, Kind.MULTIPLY} & fc1.steps.keys() == {kind}
