"""Linear layers in bfloat16 parts: against the definition, float64 and plain float32, and in a network."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

import transpike
from transpike._journal import identity
from transpike._kernels import choose_kernels
from transpike._linear import linear_layers
from transpike.neurons import (
    Differential,
    Frame,
    Framed,
    MultiThreshold,
    PublishedMultiThreshold,
    compiled_trajectory,
    one_number,
    trajectory,
)
from transpike.products import linear_of_means, linear_of_spikes, parts, refusal
from transpike.products.parts import means_as_defined
from transpike.types import Threshold

CPU = torch.device("cpu")
needs_units = pytest.mark.skipif(bool(refusal(CPU)), reason=refusal(CPU))
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 5, 130, 77, 1),
    (4, 197, 192, 576, 1),
    (2, 64, 64, 64, 1),
    (5, 13, 34, 80, 5),
    (1, 130, 768, 10, 2),
    (3, 33, 2081, 33, 1),
]


def spikes_of(steps: int, rows: int, inner: int, *, outer: int = 1, theta: float = 0.37109375) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(-1, 2, (outer, steps, rows, inner), generator=generator)
    return (theta * signs * torch.exp2(-torch.randint(0, 8, signs.shape, generator=generator).float())).bfloat16()


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rate", [True, False])
def test_the_definition_is_the_layer_of_the_mean_after_each_step(rate: bool) -> None:
    spikes, weight, bias = spikes_of(3, 4, 6, outer=2), randn(5, 6).double(), randn(5).double()
    found = means_as_defined(spikes, weight, bias, rate)
    for t in range(1, 4):
        said = sum(spikes.double().unbind(1)[:t]) / (t if rate else 1)
        torch.testing.assert_close(found[:, t - 1], said @ weight.T + bias)


@needs_units
@pytest.mark.parametrize("rate", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("steps", "rows", "inner", "columns", "outer"), SHAPES)
def test_the_error_is_that_of_float32(
    steps: int, rows: int, inner: int, columns: int, outer: int, with_bias: bool, rate: bool
) -> None:
    """Every product is exact; additions in float32 err by at most 2^-24 of what is added so far, each."""
    spikes, weight = spikes_of(steps, rows, inner, outer=outer), randn(columns, inner)
    bias = randn(columns) if with_bias else None
    grouped = spikes.view(outer, steps * rows, 1, inner)
    found = linear_of_spikes(grouped, weight, bias, steps=steps, rate=rate, outer=outer)
    assert found.dtype == torch.float32 and found.shape == (outer, steps * rows, 1, columns)
    found = found.view(outer, steps, rows, columns)
    wide = None if bias is None else bias.double()
    exact = means_as_defined(spikes, weight.double(), wide, rate)
    size = means_as_defined(spikes.abs(), weight.abs().double(), None if wide is None else wide.abs(), rate)
    error = (found - exact).abs()
    assert (error <= 2.0**-21 * size + 1e-30).all()
    plain = means_as_defined(spikes, weight, bias, rate)
    assert error.max() <= 2 * (plain - exact).abs().max() + 1e-30, "no worse than a float32 product"


@needs_units
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 1, 1), (77, 130, 33), (700, 384, 100), (40, 4127, 65)])
def test_the_error_of_means_is_that_of_float32(rows: int, inner: int, columns: int, with_bias: bool) -> None:
    means, weight, bias = randn(rows, inner) / 3, randn(columns, inner), randn(columns) if with_bias else None
    found = linear_of_means(means.view(rows, 1, inner), weight, bias)
    assert found.dtype == torch.float32 and found.shape == (rows, 1, columns)
    wide = None if bias is None else bias.double()
    exact = nn.functional.linear(means.double(), weight.double(), wide)
    size = nn.functional.linear(means.double().abs(), weight.double().abs(), None if wide is None else wide.abs())
    error = (found[:, 0] - exact).abs()
    assert (error <= 2.0**-21 * size).all()
    plain = nn.functional.linear(means, weight, bias)
    assert error.max() <= 2 * (plain - exact).abs().max() + 1e-30, "no worse than a float32 product"


@needs_units
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    """In its own row; nothing lies about it."""
    means, weight = randn(40, 70), randn(50, 70)
    means[33, 69] = value
    assert linear_of_means(means, weight).isfinite().all(1).tolist() == [row != 33 for row in range(40)]
    found = linear_of_spikes(means.bfloat16(), weight, steps=2, rate=True)
    assert found.isfinite().all(1).tolist() == [row != 33 for row in range(40)]


@needs_units
def test_weights_are_split_without_loss() -> None:
    weight = randn(70, 34) * torch.exp2(torch.arange(70.0) - 35)[:, None]
    assert torch.equal(linear_of_spikes(torch.eye(34).bfloat16(), weight, steps=1, rate=True), weight.T)
    assert torch.equal(linear_of_means(torch.eye(34), weight), weight.T)
    assert torch.equal(linear_of_means(weight, torch.eye(34)), weight)


@needs_units
def test_sums_that_float32_holds_are_exact() -> None:
    spikes = spikes_of(4, 9, 64, theta=1.0)
    weight = torch.randint(-(2**9), 2**9, (80, 64), generator=torch.Generator().manual_seed(0)).float()
    found = linear_of_spikes(spikes, weight, steps=4, rate=False)
    assert torch.equal(found, means_as_defined(spikes, weight.double(), None, False).float())


def test_defaults_of_the_user_do_not_reach_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled code writes float32 numbers to addresses in the host's memory."""
    called: list[tuple] = []
    inputs, weight = torch.ones(1, 2, 3, 4), torch.ones(5, 4)
    monkeypatch.setattr(parts, "_built", lambda: lambda *given: called.append(given))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            out = parts._in_parts(inputs, weight, None, False)
            monkeypatch.setattr(parts, "_in_parts", means_as_defined)
            assert parts._refusal.__wrapped__() == ""
    finally:
        torch.set_default_dtype(torch.float32)
    assert (out.dtype, out.device, out.shape) == (torch.float32, CPU, (1, 2, 3, 5)) and len(called) == 1
    assert 0 not in called[0][:2] and 0 not in called[0][3:5], "memory there is"


@needs_units
def test_rows_and_threads_change_no_bit() -> None:
    spikes, weight, bias = spikes_of(2, 150, 96, outer=3), randn(200, 96), randn(200)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            said = linear_of_spikes(spikes, weight, bias, steps=2, rate=True, outer=3)
            found.append(torch.stack([said, linear_of_means(spikes.float() / 3, weight, bias)]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in pairwise(found))
    some = linear_of_spikes(spikes[1:, :, :7], weight, bias, steps=2, rate=True, outer=2)
    assert torch.equal(some, found[0][0, 1:, :, :7])
    assert torch.equal(linear_of_means(spikes[1:, :, :7].float() / 3, weight, bias), found[0][1, 1:, :, :7])


@pytest.mark.parametrize("case", ["float64", "turned", "empty"])
def test_what_the_units_do_not_take_is_computed_as_defined(case: str) -> None:
    spikes, weight = spikes_of(2, 0 if case == "empty" else 3, 8), randn(5, 8)
    weight = weight.double() if case == "float64" else randn(8, 5).T if case == "turned" else weight
    found = linear_of_spikes(spikes, weight, steps=2, rate=True)
    assert found.dtype == weight.dtype and torch.equal(found, means_as_defined(spikes, weight, None, True))
    means = spikes.to(weight.dtype)
    assert torch.equal(linear_of_means(means, weight), nn.functional.linear(means, weight))


def test_shapes_that_do_not_fit_are_refused_as_by_pytorch() -> None:
    for weight, bias in ((randn(5, 7), None), (randn(5, 9), None), (randn(5, 8), randn(4))):
        with pytest.raises(RuntimeError, match="shape|size"):
            linear_of_means(randn(3, 8), weight, bias)
        with pytest.raises(RuntimeError, match="shape|size"):
            linear_of_spikes(spikes_of(2, 3, 8), weight, bias, steps=2, rate=True)


def test_which_neurons_emit_one_number() -> None:
    eight, nine = Threshold(0.99609375, 0.5), Threshold(0.998046875, 0.5)
    assert one_number(MultiThreshold(), eight) and one_number(Differential(), eight)
    assert not one_number(MultiThreshold(), nine), "nine significant bits"
    assert not one_number(Differential(pulses=2), eight), "sums of levels"
    octaves = Frame(scale=torch.tensor([[1.0, 4.0]]))
    assert one_number(Framed(MultiThreshold(), octaves), eight)
    assert not one_number(Framed(MultiThreshold(), Frame(scale=torch.tensor([[1.0, 3.0]]))), eight)
    assert not one_number(Framed(MultiThreshold(), Frame(shift=torch.ones(1, 2))), eight)


@pytest.mark.parametrize(
    ("neuron", "framed"),
    [
        (MultiThreshold(), True),
        (MultiThreshold(4, 0.5), False),
        (PublishedMultiThreshold(4), True),
        (Differential(), False),
        (Differential(), True),
    ],
)
def test_what_is_emitted_adds_up_to_the_means(neuron, framed: bool) -> None:  # type: ignore[no-untyped-def]
    steps, threshold = 6, Threshold(0.75, 0.5)
    values = randn(steps, 3, 50)
    values = values.cumsum(0) / torch.arange(1, steps + 1).view(-1, 1, 1)
    if framed:
        neuron = Framed(neuron, Frame(scale=torch.exp2(-(torch.arange(50.0) % 3)).view(1, 50)))
    means, fired, spoken = trajectory(neuron, values, threshold, masks=True)
    said, *marks = compiled_trajectory(neuron, values, threshold, masks=True, emitted=True)
    assert said.dtype == torch.bfloat16
    sums = said.double().cumsum(0)
    if neuron.code == "rate":
        sums /= torch.arange(1, steps + 1).view(-1, 1, 1)
    torch.testing.assert_close(sums.float(), means, rtol=1e-6, atol=1e-6)
    assert torch.equal(said != 0, fired) and torch.equal(marks[0], fired) and torch.equal(marks[1], spoken)  # type: ignore[arg-type]
    values[4, 1, 3] = torch.inf
    found = compiled_trajectory(neuron, values, threshold, masks=True, emitted=True)[0].isnan()
    assert found[4, 1, 3] and not found[:4].any()


class Branches(nn.Module):
    """What only linear layers read, in several groupings; and what something else reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(8, 8) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x)).transpose(0, 1).contiguous()  # tokens first
        y = torch.relu(self.b(x) + self.c(x.view(-1, 4, 2)[:, :, :].reshape(-1, 8)).view(x.shape)).transpose(0, 1)
        z = torch.relu(self.d(y))
        return self.e(z) @ z.mT


def test_sites_that_only_linear_layers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "")
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8)
    snn = transpike.convert(Branches().eval(), [images], "ecmt")
    linear = linear_layers(snn, 2)
    spoken = [node for node, layer in linear.layers.items() if layer is not linear_of_means]
    assert {"b", "c", "d"} <= {snn.layers_by_node[node.name].module for node in spoken}
    assert {reader.target for reader in linear.layers} == {torch.ops.aten.linear.default}
    for marker in snn.program.fed:
        assert not any("matmul" in str(reader.target) for reader in marker.users)
    eager = snn.simulate(images, 3, kernel="eager")
    run = snn.simulate(images, 3, kernel="compiled")
    torch.testing.assert_close(run.outputs, eager.outputs)
    assert run.spikes.to_json() == eager.spikes.to_json()
    assert not linear_layers(snn, None).sites and set(linear_layers(snn, None).layers) == set(linear.layers)
    assert not linear_layers(snn.to(torch.float64), 2).layers


@pytest.mark.parametrize("recipe", ["ecmt", "differential"])
def test_a_network_of_spikes_is_that_of_means(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As float32 has it: on every processor, by the definition, and by the units where there are some."""
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    images = randn(6, 3, 32, 32)
    snn = transpike.convert(source, [images], recipe)
    eager = snn.simulate(images, 3, kernel="eager")
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "")
    run = snn.simulate(images, 3, kernel="compiled")
    assert run.kernel == "compiled, 9 linear layers from spikes"
    means = float((run.outputs - eager.outputs).abs().mean() / eager.outputs.abs().mean())
    assert means < 0.05, "a membrane on a boundary may fall the other way"
    assert run.spikes.spikes_per_neuron().sum() == pytest.approx(eager.spikes.spikes_per_neuron().sum(), rel=1e-3)
    assert torch.equal(run.outputs, snn.simulate(images, 3, kernel="compiled", count=False).outputs)
    snn.kernel = "compiled"
    evaluation = transpike.evaluate(snn, [SimpleNamespace(inputs=images, labels=None)], steps=3)
    assert evaluation.kernel == run.kernel, "what a report says is of the run itself"


@pytest.mark.parametrize(("recipe", "mode"), [("balanced", "folded"), ("balanced", "streaming"), ("ecmt", "streaming")])
def test_other_networks_and_modes_compute_means_in_parts(
    recipe: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    images = randn(6, 3, 32, 32)
    snn = transpike.convert(source, [images], recipe)
    eager = snn.simulate(images, 2, mode=mode, kernel="eager")
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "")
    run = snn.simulate(images, 2, mode=mode, kernel="compiled")
    assert run.kernel == "compiled, 9 linear layers in parts"
    apart = float((run.outputs - eager.outputs).abs().mean() / eager.outputs.abs().mean())
    assert apart < 0.05, "a membrane on a boundary may fall the other way"
    half = choose_kernels(snn, "compiled", "bfloat16", samples=6, steps=2, folded=mode == "folded")
    assert str(half) == "compiled", "other precisions have products of their own"


@needs_units
def test_spikes_are_no_further_from_float64_than_means(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10).eval()
    images = randn(16, 3, 64, 64)
    snn = transpike.convert(source, [images], "ecmt")
    found = {"spikes": snn.simulate(images, 4, kernel="compiled", count=False).outputs}
    monkeypatch.setattr("transpike._linear.refusal", lambda device: "not now")
    found["means"] = snn.simulate(images, 4, kernel="compiled", count=False).outputs
    exact = snn.to(torch.float64).simulate(images.double(), 4, kernel="eager", count=False).outputs
    apart = {name: float((outputs - exact).abs().mean()) for name, outputs in found.items()}
    assert apart["spikes"] <= 1.5 * apart["means"], apart


def test_a_journal_knows_how_products_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of one way are not continued by another."""
    model, images = transpike.zoo.load_model("digits")[0], torch.rand(4, 1, 8, 8)
    snn = transpike.convert(model, [images], "ecmt")
    found = set()
    for reason in ("", "no units"):
        monkeypatch.setattr("transpike._journal.refusal", lambda device, reason=reason: reason)
        for snn.kernel in ("compiled", "eager"):
            found.add(identity(snn, 4, "auto")["products"])
    assert found == {"in parts where compiled", "plain"}


@needs_units
@pytest.mark.parametrize("case", ["broken", "wrong"])
def test_a_product_that_cannot_be_built_is_said_and_not_used(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise OSError("no compiler")

    if case == "broken":
        monkeypatch.setattr(parts, "_built", broken)
    else:
        monkeypatch.setattr(parts, "_in_parts", lambda *_: torch.zeros(3, 2, 66, 70))
    monkeypatch.setattr(parts, "_refusal", parts._refusal.__wrapped__)
    assert case == ("broken" if "could not be built (OSError)" in refusal(CPU) else "wrong")
    assert "linear layers are PyTorch's own" in caplog.text
