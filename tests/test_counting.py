"""Counted spikes and operations against loops over the spikes that were really emitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import transpike
from oracle import Block, conv2d_operations, linear_operations, product_operations
from transpike._execute import run_body, run_prefix
from transpike.errors import PlanError
from transpike.measure import Tally
from transpike.measure.operations import _einsum_size
from transpike.recipes import recipe_named

STEPS = 4


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def converted(model: nn.Module, x: torch.Tensor, **options: Any) -> transpike.SpikingModel:
    return transpike.convert(model.double().eval(), [x], recipe_named("ecmt", **{"levels": 3, **options}))


def counted(snn: transpike.SpikingModel, x: torch.Tensor) -> Tally:
    """The tally, which must not depend on how time runs."""
    folded, streaming = (snn.simulate(x, STEPS, mode=mode) for mode in ("folded", "streaming"))
    assert (folded.mode, streaming.mode) == ("folded", "streaming")
    assert folded.spikes.to_json() == streaming.spikes.to_json()
    return folded.spikes


def emitted_spikes(snn: transpike.SpikingModel, x: torch.Tensor) -> dict[str, list[np.ndarray]]:
    """What every site emits in every step, by running the body with neurons of our own making."""
    crossing = run_prefix(snn.program, snn.prepare(x))
    state: dict[str, torch.Tensor] = {}
    spikes: dict[str, list[np.ndarray]] = {name: [] for name in snn.neurons}
    for t in range(1, STEPS + 1):

        def fire(marker: torch.fx.Node, value: torch.Tensor, t: int = t) -> torch.Tensor:
            site = str(marker.args[1])
            state[site], out, emitted = snn.neurons[site].step(state.get(site), t, value, snn.thresholds[site])
            spikes[site].append(emitted.numpy())
            return out

        with torch.no_grad():
            run_body(snn.program, crossing, fire)
    return spikes


def check_spikes(snn: transpike.SpikingModel, tally: Tally, spikes: dict[str, list[np.ndarray]], samples: int) -> None:
    assert set(tally.spikes) == set(spikes) == {site.name for site in snn.plan.sites}
    for name, steps in spikes.items():
        assert tally.spikes[name].tolist() == [int((step != 0).sum()) for step in steps], name
        assert tally.neurons[name] == steps[0].size // samples
        assert 0 < tally.spikes[name].sum() < STEPS * steps[0].size, "a test without spikes, or with all, sees nothing"


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 6)], ids=["vectors", "tokens"])
def test_linear(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 11, bias=False)),
        randn(*shape),
    )
    snn = converted(model, x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, shape[0])
    assert set(tally.operations) == {"2", "4"}, "the first layer is analog and precedes every neuron"
    for layer, out_features in (("2", 3), ("4", 11)):
        expected = [linear_operations(step, out_features) for step in spikes[f"{layer}:input"]]
        assert tally.operations[layer].tolist() == expected
    tokens = shape[1] if len(shape) == 3 else 1
    assert tally.dense == {"2": 7 * 3 * tokens, "4": 3 * 11 * tokens}


CONVOLUTIONS = [
    {"out_channels": 6, "kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "groups": 2},
    {"out_channels": 4, "kernel": (3, 3), "padding": (2, 2), "dilation": (2, 2), "groups": 4},
    {"out_channels": 3, "kernel": (3, 2), "stride": (2, 1), "padding": (0, 1)},
    {"out_channels": 2, "kernel": (2, 2), "stride": (3, 3), "padding": (1, 0)},  # leaves gaps
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_conv2d(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    rest = {key: value for key, value in settings.items() if key not in ("out_channels", "kernel")}
    second = nn.Conv2d(4, settings["out_channels"], settings["kernel"], **rest)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = randn(2, 2, 7, 6)
    model(x.float())
    snn = converted(model, x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 2)
    convolutions = [conv2d_operations(step, **settings) for step in spikes["2:input"]]
    assert tally.operations["2"].tolist() == convolutions
    assert tally.operations["5"].tolist() == [linear_operations(step, 3) for step in spikes["5:input"]]
    out = second(torch.zeros(1, 4, 7, 6, dtype=torch.float64)).numel()
    kernel = settings["kernel"][0] * settings["kernel"][1] * 4 // settings.get("groups", 1)
    assert tally.dense["2"] == out * kernel


def test_conv_with_padding_by_name_and_no_batch_mixing() -> None:
    """padding="same" is another operator overload; conv1d and the transposed convolution have other dimensions."""
    torch.manual_seed(2)
    same, narrow = nn.Conv2d(3, 4, 3, padding="same", dilation=2), nn.Conv1d(4, 2, 3, stride=2, padding=1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1),
        nn.Tanh(),
        same,
        nn.Flatten(2),
        nn.GELU(),
        narrow,
        nn.GELU(),
        nn.ConvTranspose1d(2, 4, 2, stride=2),
    )
    x = randn(3, 2, 5, 5)
    snn = converted(model, x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 3)
    same_ = [conv2d_operations(step, 4, (3, 3), padding=(2, 2), dilation=(2, 2)) for step in spikes["2:input"]]
    one_row = [
        conv2d_operations(step[:, :, None], 2, (1, 3), stride=(1, 2), padding=(0, 1)) for step in spikes["5:input"]
    ]
    assert tally.operations["2"].tolist() == same_
    assert tally.operations["5"].tolist() == one_row
    # A transposed convolution sends every element to the whole kernel of every output channel.
    assert tally.operations["7"].tolist() == [linear_operations(step, 2 * 4) for step in spikes["7:input"]]
    assert tally.dense == {"2": 4 * 25 * 3 * 9, "5": 2 * 13 * 4 * 3, "7": 2 * 13 * 4 * 2}


def test_attention() -> None:
    torch.manual_seed(3)
    x = randn(3, 4, 6)
    snn = converted(Block(), x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 3)
    keys = [step.transpose(0, 2, 1) for step in spikes["attn:key"]]
    assert tally.operations["attn:query*key"].tolist() == product_operations(spikes["attn:query"], keys)
    expected = product_operations(spikes["attn:softmax"], spikes["attn:value"])
    assert tally.operations["attn:softmax*value"].tolist() == expected
    readers = {"attn.q": "attn.q", "attn.k": "attn.q", "attn.v": "attn.q", "attn.proj": "attn.proj", "fc2": "fc2"}
    for layer, site in readers.items():  # q, k and v read one neuron and are three layers
        assert tally.operations[layer].tolist() == [linear_operations(step, 8) for step in spikes[f"{site}:input"]]
    assert tally.operations["fc1"].tolist() == [linear_operations(step, 12) for step in spikes["fc1:input"]]
    assert tally.operations["head"].tolist() == [linear_operations(step, 5) for step in spikes["head:input"]]
    assert tally.dense["attn:query*key"] == tally.dense["attn:softmax*value"] == 4 * 4 * 8
    assert len(tally.operations) == 9


class Heads(nn.Module):
    """Multi-head attention: one qkv layer, heads split off by reshape and permute, so masks must follow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embed(x))
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # 3, batch, heads, tokens, channels
        x = nn.functional.scaled_dot_product_attention(q, k, v, scale=8.0).transpose(1, 2).flatten(2)
        return self.proj(x)


def test_several_heads() -> None:
    torch.manual_seed(4)
    x = randn(3, 5, 5)
    snn = converted(Heads(), x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 3)
    by_kind = {
        str(site.kind): spikes[site.name]
        for site in snn.plan.sites
        if site.kind in ("query", "key", "softmax", "value")
    }
    operations = {name.split(":")[-1]: counts.tolist() for name, counts in tally.operations.items()}
    keys = [step.swapaxes(-2, -1) for step in by_kind["key"]]
    assert by_kind["query"][0].shape == (3, 2, 5, 4)
    assert operations["query*key"] == product_operations(by_kind["query"], keys)
    assert operations["softmax*value"] == product_operations(by_kind["softmax"], by_kind["value"])
    assert operations["proj"] == [linear_operations(step, 3) for step in spikes["proj:input"]]


class SharedKeys(nn.Module):
    """Grouped-query attention: one key and value head serves two query heads, so a spike is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(5, 8), nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embed(x))
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=8.0, enable_gqa=True).flatten(1)


def test_shared_heads() -> None:
    torch.manual_seed(11)
    x = randn(3, 5, 5)
    snn = converted(SharedKeys(), x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 3)
    by_kind = {str(site.kind): spikes[site.name] for site in snn.plan.sites}

    def heads(steps: list[np.ndarray], repeats: int) -> list[np.ndarray]:
        """[batch, tokens, channels] or [batch, heads, tokens, channels], each head `repeats` times."""
        split = [s.reshape(3, 5, -1, 4).swapaxes(1, 2) if s.ndim == 3 else s for s in steps]
        return [np.repeat(s, repeats, axis=1) for s in split]

    queries, keys, values = heads(by_kind["query"], 1), heads(by_kind["key"], 2), heads(by_kind["value"], 2)
    assert sum(step.size for step in by_kind["key"]) * 2 == sum(step.size for step in keys), "neurons before the repeat"
    operations = {name.split(":")[-1]: counts.tolist() for name, counts in tally.operations.items()}
    assert operations["query*key"] == product_operations(queries, [key.swapaxes(-2, -1) for key in keys])
    assert operations["softmax*value"] == product_operations(by_kind["softmax"], values)


class Einsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        self.embed, self.left, self.right = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embed(x))
        return torch.einsum(self.equation, self.left(x), self.right(x))


@pytest.mark.parametrize("equation", ["bnd,bmd->bnm", "b n d, b m d -> bmn", "...nd,...md->...nm", "b...d,bmd->b...m"])
def test_einsum(equation: str) -> None:
    torch.manual_seed(12)
    x = randn(3, 4, 5)
    snn = converted(Einsum(equation), x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 3)
    (layer,) = [layer for layer in snn.plan.layers if layer.role is transpike.Role.PRODUCT]
    left, right = (spikes[str(operand.site)] for operand in layer.operands)
    assert tally.operations[layer.name].tolist() == product_operations(left, [step.swapaxes(1, 2) for step in right])
    assert tally.dense[layer.name] == 4 * 4 * 6


def test_einsum_sizes_broadcast() -> None:
    assert _einsum_size("...d,...d->...", torch.ones(3, 1, 4), torch.ones(2, 4)) == 3 * 2 * 4
    assert _einsum_size("bnd,bmd->bnm", torch.ones(3, 2, 4), torch.ones(1, 5, 4)) == 3 * 2 * 5 * 4


def test_a_product_of_three_is_refused_by_name() -> None:
    """nn.Bilinear multiplies two signals and a weight: neither a weight layer nor a product."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.pair, self.head = nn.Linear(5, 4), nn.Bilinear(4, 4, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.embed(x))
            return self.head(self.pair(x, x))

    with pytest.raises(PlanError, match="bilinear.default in module pair"):
        converted(Three(), randn(3, 5))
    snn = converted(Three(), randn(3, 5), allow_unknown=True)
    assert set(counted(snn, randn(3, 5)).operations) == {"head"}


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.down(self.up(x) * nn.functional.silu(self.gate(x)))


def test_gates() -> None:
    """An elementwise product: the three terms, element by element."""
    torch.manual_seed(5)
    x = randn(6, 4)
    snn = converted(Gate(), x)
    tally, spikes = counted(snn, x), emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 6)
    (layer,) = [layer for layer in snn.plan.layers if layer.role is transpike.Role.PRODUCT]
    left, right = (spikes[str(operand.site)] for operand in layer.operands)
    sums = [np.cumsum(operand, 0) for operand in (left, right)]
    expected = [
        int(((a != 0) & (b != 0)).sum() + ((a != 0) & (right_sum != 0)).sum() + ((left_sum != 0) & (b != 0)).sum())
        for a, b, left_sum, right_sum in zip(left, right, *sums, strict=True)
    ]
    assert tally.operations[layer.name].tolist() == expected
    assert tally.dense[layer.name] == 8


class TokensFirst(nn.Module):
    """[S, B, D] with a gate [B, D] for all tokens: the operands have their batch in different places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.down(nn.functional.silu(self.gate(x[0])) * self.up(x))


@pytest.mark.parametrize("tokens", [STEPS, 5], ids=["which divides as steps do", "which does not divide"])
def test_factors_whose_batches_lie_in_different_dimensions(tokens: int) -> None:
    torch.manual_seed(5)
    x = randn(tokens, 6, 4)
    snn = transpike.convert(TokensFirst().double().eval(), [x], recipe_named("ecmt", levels=3), batch_dim=1)
    (layer,) = [layer for layer in snn.plan.layers if layer.role is transpike.Role.PRODUCT]
    assert len(set(counted(snn, x).operations[layer.name].tolist())) > 1


class Factors(nn.Module):
    """Matrix factorisation: two tables have no source in common, a row and its own gate have."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.head = nn.Embedding(9, 6), nn.Embedding(8, 6), nn.Linear(6, 3)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        user = self.user(users)
        return self.head(user * torch.sigmoid(user) * self.item(items))


def test_a_product_of_two_tables_is_a_product() -> None:
    torch.manual_seed(7)
    users, items = torch.randint(0, 9, (8,)), torch.randint(0, 8, (8,))
    snn = transpike.convert(Factors().double().eval(), [(users, items)], recipe_named("ecmt", levels=3))
    roles = [operator.role for operator in snn.plan.operators if operator.op == "mul.Tensor"]
    assert roles == [transpike.Role.NONLINEAR, transpike.Role.PRODUCT]
    tally = snn.simulate((users, items), STEPS).spikes
    (layer,) = [layer for layer in snn.plan.layers if layer.role is transpike.Role.PRODUCT]
    assert tally.operations[layer.name].sum() > 0


def test_an_analog_head_counts_its_inputs() -> None:
    """Behind a neuron, a layer without one reads ReLU outputs: each non-zero one is an accumulate per output."""
    torch.manual_seed(6)
    model, x = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3)), randn(5, 6)
    snn = converted(model, x, head="analog")
    tally = counted(snn, x)
    spikes = emitted_spikes(snn, x)
    check_spikes(snn, tally, spikes, 5)
    weight, bias = model[2].weight.detach().numpy(), model[2].bias.detach().numpy()
    means = np.cumsum(spikes["2:input"], 0) / np.arange(1, STEPS + 1)[:, None, None]
    hidden = np.maximum(means @ weight.T + bias, 0)
    assert tally.operations["4"].tolist() == [linear_operations(step, 3) for step in hidden]
    assert set(tally.spikes) == {"2:input"}


class Masked(nn.Module):
    """A weight layer that reads more than its spikes and constant weights: a mask, or a residual to add to."""

    def __init__(self, reader: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.reader = reader
        self.embed, self.weight = nn.Linear(6, 7), nn.Parameter(torch.randn(7, 3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.reader(self, torch.relu(self.embed(x)), mask)


MASKED: dict[str, tuple[Callable[..., torch.Tensor], int, int]] = {  # with the fan-out of a spike, and dense operations
    "einsum": (lambda net, h, mask: torch.einsum("bs,bsd->bd", mask.double(), h), 1, 4 * 7),
    "matmul": (lambda net, h, mask: torch.matmul(mask[:, None].double(), h)[:, 0], 1, 4 * 7),
    "bmm": (lambda net, h, mask: torch.bmm(mask[:, None].double(), h)[:, 0], 1, 4 * 7),
    "addmm": (lambda net, h, mask: torch.addmm(mask[:, :3].double(), h[:, 0], net.weight), 3, 7 * 3),
}


@pytest.mark.parametrize("name", MASKED)
def test_what_a_layer_reads_beside_its_spikes_is_of_one_sample(name: str) -> None:
    torch.manual_seed(13)
    reader, out_features, dense = MASKED[name]
    given = (randn(5, 4, 6), torch.randint(0, 2, (5, 4), generator=torch.Generator().manual_seed(1)))
    snn = converted(Masked(reader), given)  # type: ignore[arg-type]
    tally, spikes = counted(snn, given), emitted_spikes(snn, given)  # type: ignore[arg-type]
    check_spikes(snn, tally, spikes, 5)
    ((layer, operations),), (site,) = tally.operations.items(), spikes.values()
    read = [step.reshape(5, -1, 7)[:, : 1 if name == "addmm" else 4] for step in site]
    assert operations.tolist() == [linear_operations(step, out_features) for step in read]
    assert tally.dense == {layer: dense}
    alone = Tally(STEPS)
    for sample in range(5):
        alone += counted(snn, tuple(part[sample : sample + 1] for part in given))  # type: ignore[arg-type]
    assert alone.to_json() == tally.to_json()


# --- whole networks --------------------------------------------------------------------------------------------------


def image_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


NETWORKS = {
    "block": (Block, (3, 4, 6)),
    "heads": (Heads, (3, 5, 5)),
    "images": (image_network, (3, 2, 7, 7)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_dense_operations_are_half_of_torch_flops(name: str) -> None:
    """FlopCounterMode on the source module, minus the first layer, which no neuron precedes."""
    torch.manual_seed(8)
    build, shape = NETWORKS[name]
    model, x = build(), randn(*shape)
    snn = converted(model, x)
    with (
        FlopCounterMode(display=False) as flops,
        torch.no_grad(),
        nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    ):
        model(x)
    counts = {key: sum(per_op.values()) for key, per_op in flops.get_flop_counts().items()}
    root = type(model).__name__
    first = snn.plan.layers[0].name
    tally = snn.simulate(x, 1).spikes
    assert first not in tally.dense
    assert 2 * sum(tally.dense.values()) * shape[0] == counts["Global"] - counts[f"{root}.{first}"]
    for layer, dense in tally.dense.items():
        if "*" not in layer:
            assert 2 * dense * shape[0] == counts[f"{root}.{layer}"], layer


def test_operations_without_counting_are_absent() -> None:
    torch.manual_seed(9)
    x = randn(3, 4, 6)
    snn = converted(Block(), x)
    counted, plain = snn.simulate(x, 2), snn.simulate(x, 2, count=False)
    assert torch.equal(counted.outputs, plain.outputs)
    assert not plain.spikes.spikes
    assert not plain.spikes.operations


# --- adding ----------------------------------------------------------------------------------------------------------


def test_tallies_of_parts_add_up_to_the_whole() -> None:
    torch.manual_seed(10)
    x = randn(7, 4, 6)
    snn = converted(Block(), x)
    total = Tally(STEPS)
    for part in x.split([1, 4, 2]):
        total += snn.simulate(part, STEPS).spikes
    assert total.to_json() == snn.simulate(x, STEPS).spikes.to_json()
    assert total.samples == 7


def test_tally_arithmetic() -> None:
    tally, more = Tally(3, 2), Tally(3, 3)
    tally.add_spikes("a", 0, np.array([1, 2, 3]), 4)
    tally.add_spikes("a", 1, np.array([10]), 4)
    more.add_spikes("a", 0, np.array([1, 1, 1]), 4)
    more.add_spikes("b", 2, np.array([5]), 6)
    more.add_operations("l", 0, np.array([7, 0, 9]), 12)
    tally += more
    assert {site: counts.tolist() for site, counts in tally.spikes.items()} == {"a": [2, 13, 4], "b": [0, 0, 5]}
    assert tally.operations["l"].tolist() == [7, 0, 9]
    assert (tally.samples, tally.total_neurons, tally.neurons, tally.dense) == (5, 10, {"a": 4, "b": 6}, {"l": 12})
    np.testing.assert_allclose(tally.spikes_per_neuron(), np.array([2, 13, 9]) / (10 * 5))
    np.testing.assert_allclose(tally.rates()["b"], np.array([0, 0, 5]) / (6 * 5))
    assert more.spikes["a"].tolist() == [1, 1, 1], "what is added stays as it is"
    with pytest.raises(ValueError, match="2 steps to counts of 3"):
        tally += Tally(2)


def test_an_empty_tally_divides_by_nothing() -> None:
    assert Tally(2).spikes_per_neuron().tolist() == [0, 0]
    assert Tally(2).rates() == {}


def test_a_model_that_mixes_its_samples_streams_and_counts() -> None:
    """A value with its batch in two dimensions cannot be folded; counting must not need it."""

    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x)
            return self.last(torch.softmax(hidden @ hidden.transpose(0, 1), -1) @ hidden)

    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    snn = transpike.convert(Mixing().eval(), [x])
    assert "two dimensions" in snn.unfoldable
    run = snn.simulate(x, 3)
    assert run.mode == "streaming" and run.spikes.spikes_per_neuron()[0] > 0


class Prompted(nn.Module):
    """As CLIP has them: classes that all images of a batch are held against; `join` makes the outputs."""

    def __init__(self, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.join = join
        self.image, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.text, self.text_head = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return self.join(self.head(torch.relu(self.image(x))), self.text_head(torch.relu(self.text(prompts))))


@pytest.mark.parametrize(
    ("join", "prompts"),
    [(lambda image, text: image @ text.mT, 37), (lambda image, text: image @ text.mT, 6), (torch.add, 1)],
    ids=["odd", "even", "added"],
)
def test_what_a_batch_computes_once_counts_for_every_sample(join: Callable[..., torch.Tensor], prompts: int) -> None:
    torch.manual_seed(14)
    x, texts = randn(3, 6), randn(prompts, 5, seed=1)
    snn = converted(Prompted(join), (x, texts))  # type: ignore[arg-type]
    assert snn.unfoldable == "site text_head:input has no batch dimension"
    run = snn.simulate((x, texts), STEPS)
    assert run.mode == "streaming" and run.spikes.by_sample is None, "part of the spikes would be too few"
    alone = Tally(STEPS)
    for sample in x.split(1):
        alone += snn.simulate((sample, texts), STEPS).spikes
    assert run.spikes.to_json() == alone.to_json()
    assert run.spikes.neurons["text_head:input"] == prompts * 8
    assert run.spikes.dense["text_head"] == prompts * 8 * 4
    rate = run.spikes.rates()["text_head:input"]
    assert 0.1 < rate[-1] < 1 and rate[-1] == alone.rates()["text_head:input"][-1]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (lambda head, h: head(h.mean(0, keepdim=True)), "site head:input has no batch dimension"),
        (lambda head, h: head(h).sum(), "the output has no batch dimension"),
    ],
    ids=["mean over samples", "one number"],
)
def test_a_model_without_a_batch_at_its_end_streams(last: Callable[..., torch.Tensor], reason: str) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return last(self.head, torch.relu(self.first(x)))

    torch.manual_seed(15)
    x = randn(5, 6)
    snn = converted(Whole(), x)
    assert snn.unfoldable == reason
    run = snn.simulate(x, STEPS)
    assert run.mode == "streaming" and run.outputs.shape[1:] == snn.source(x).shape
    assert run.spikes.neurons == {"head:input": 5} and run.spikes.dense == {"head": 15}
    assert 0 < run.spikes.spikes["head:input"].sum() < 5 * 5 * STEPS
    assert run.spikes.operations["head"].tolist() == (3 * run.spikes.spikes["head:input"]).tolist()
