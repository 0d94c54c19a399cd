"""Simulation: the source graph on running means is the network of spikes and compensation modules."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import transpike
from oracle import BLOCK_SITES, Block, Membrane, Mixing, literal_block
from transpike._convert import _different
from transpike._execute import run_body, run_prefix
from transpike._kernels import may_hide_nan
from transpike._normalise import locate_batch
from transpike._simulate import check_precision
from transpike.errors import CaptureError, ConfigError, DataError, TranspikeError
from transpike.neurons import PublishedMultiThreshold
from transpike.observers import Percentile
from transpike.recipes import Recipe, ecmt, ecmt_code

STEPS = 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


@pytest.fixture(scope="module")
def snn(block: Block) -> transpike.SpikingModel:
    return transpike.convert(block, [randn(16, 4, 6, seed=1)], ecmt(levels=5))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return randn(5, 4, 6, seed=2)


class Images(nn.Module):
    """A convolutional stem, patches that become tokens, attention over them, batch normalisation and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv, self.pool = nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.MaxPool2d(2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv(nn.functional.gelu(self.norm(self.stem(x))))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


class Tokens(nn.Module):
    """Ids and a padding mask in, causal attention, a gate, tied scaling: what language models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.qkv, self.up, self.gate, self.down = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 11, bias=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        causal = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool, device=x.device).tril()
        mask = causal & attention_mask.bool()[:, None, None, :]
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return self.head(x + self.down(self.up(x) * nn.functional.silu(self.gate(x))))


def token_batch(samples: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(samples, 6, dtype=torch.long)
    mask[::2, 4:] = 0
    return {"input_ids": torch.randint(0, 11, (samples, 6), generator=generator), "attention_mask": mask}


def images() -> tuple[nn.Module, Any, Any]:
    return Images(), randn(12, 2, 9, 9, seed=3), randn(3, 2, 9, 9, seed=4)


def tokens() -> tuple[nn.Module, Any, Any]:
    return Tokens(), token_batch(8), token_batch(4, seed=1)


def blocks() -> tuple[nn.Module, Any, Any]:
    return Block(), randn(8, 4, 6), randn(3, 4, 6, seed=1)


NETWORKS = {"block": blocks, "images": images, "tokens": tokens}
RECIPES: dict[str, Recipe] = {
    "rounding": ecmt(levels=4, symmetric=True, cutoff=0.5),
    "spiking first": ecmt(first_layer="spiking"),
    "code": ecmt_code(fc2=None),
}


# --- the key law -----------------------------------------------------------------------------------------------------

LITERAL = {
    "nearest level": ecmt(levels=5),
    "as published": dataclasses.replace(ecmt_code(fc2=None, head="spiking"), neuron=PublishedMultiThreshold(6)),
    "rounding and clipping": dataclasses.replace(ecmt(levels=4, cutoff=0.5), range=Percentile(0.9)),
}


@pytest.mark.parametrize("recipe", LITERAL.values(), ids=LITERAL)
def test_equals_the_literal_network(recipe: Recipe, block: Block, x: torch.Tensor) -> None:
    """Every step of a network of membranes and compensation modules, spelled out, to rounding."""
    snn = transpike.convert(block, [randn(16, 4, 6, seed=1)], recipe)
    assert set(snn.thresholds) == set(BLOCK_SITES)

    def membrane(site: str) -> Membrane:
        return Membrane(lambda v: snn.neurons[site].quantise(v, snn.thresholds[site]))  # type: ignore[attr-defined]

    expected = literal_block(block, x, {site: membrane(site) for site in BLOCK_SITES}, STEPS)
    for mode in ("folded", "streaming"):
        outputs = snn.simulate(x, STEPS, mode=mode).outputs
        assert outputs.shape == expected.shape == (STEPS, 5, 5)
        for t in range(STEPS):
            assert (outputs[t] - expected[t]).abs().max() < 1e-10, f"{mode}, step {t + 1}"
        assert (outputs[-1] - block(x)).abs().max() > 1e-6, "else neurons do nothing and this says nothing"


def test_without_quantisation_it_is_the_source(block: Block, snn: transpike.SpikingModel, x: torch.Tensor) -> None:
    output = run_body(snn.program, run_prefix(snn.program, (x,)), lambda marker, value: value)
    assert (output - block(x)).abs().max() < 1e-12
    assert torch.equal(snn.source(x), block(x))


def test_the_error_falls_with_the_steps(block: Block, snn: transpike.SpikingModel, x: torch.Tensor) -> None:
    outputs = snn.simulate(x, 64).outputs
    errors = (outputs - block(x).detach()).abs().amax((1, 2))
    assert errors[63] < errors[7] / 3 < errors[0] / 3


# --- folded and streaming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "name"),
    [("block", "code"), ("images", "spiking first"), ("tokens", "rounding")],
)
def test_folded_is_streaming_and_parts_are_the_whole(network: str, name: str) -> None:
    torch.manual_seed(1)
    model, calibration, batch = NETWORKS[network]()
    snn = transpike.convert(model.double().eval(), [calibration], RECIPES[name])
    assert not snn.unfoldable
    folded, streaming = (snn.simulate(batch, STEPS, mode=mode) for mode in ("auto", "streaming"))
    assert (folded.mode, streaming.mode) == ("folded", "streaming")
    assert (folded.outputs - streaming.outputs).abs().max() < 1e-10
    assert folded.spikes.to_json() == streaming.spikes.to_json()
    for mode in ("folded", "streaming"):
        parts = [snn.simulate(one, STEPS, mode=mode) for one in one_by_one(batch)]
        assert (torch.cat([part.outputs for part in parts], 1) - folded.outputs).abs().max() < 1e-10
        for site, spikes in folded.spikes.spikes.items():
            assert sum(part.spikes.spikes[site] for part in parts).tolist() == spikes.tolist()


def one_by_one(batch: Any) -> list[Any]:
    if isinstance(batch, dict):
        return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(len(batch["input_ids"]))]
    return list(batch.split(1))


class TokensFirst(nn.Module):
    """torch's own encoder layer with the batch in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=False, norm_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embed(x))


def test_a_batch_in_the_second_dimension() -> None:
    torch.manual_seed(7)
    snn = transpike.convert(TokensFirst().double().eval(), [randn(5, 8, 3)], ecmt(symmetric=True), batch_dim=1)
    batch = randn(5, 4, 3, seed=1)
    folded, streaming = (snn.simulate(batch, STEPS, mode=mode) for mode in ("auto", "streaming"))
    assert folded.outputs.shape == (STEPS, 5, 4, 8)
    assert (folded.outputs - streaming.outputs).abs().max() < 1e-10
    assert folded.spikes.to_json() == streaming.spikes.to_json()
    assert folded.spikes.samples == 4
    alone = snn.simulate(batch[:, 1:2], STEPS).outputs
    assert (alone - folded.outputs[:, :, 1:2]).abs().max() < 1e-10


def test_one_step(snn: transpike.SpikingModel, x: torch.Tensor) -> None:
    longer = snn.simulate(x, 4)
    for mode in ("folded", "streaming"):
        run = snn.simulate(x, 1, mode=mode)
        assert run.steps == 1
        assert (run.outputs[0] - longer.outputs[0]).abs().max() < 1e-12
        assert all(run.spikes.spikes[site][0] == longer.spikes.spikes[site][0] for site in snn.neurons)


def test_runs_do_not_remember(snn: transpike.SpikingModel, x: torch.Tensor) -> None:
    first = snn.simulate(x, 3, mode="streaming").outputs
    snn.simulate(x * 2, 3, mode="streaming")
    snn.simulate(x, 5)
    assert torch.equal(snn.simulate(x, 3, mode="streaming").outputs, first)


def test_the_default_number_of_steps_is_the_recipes(block: Block, x: torch.Tensor) -> None:
    snn = transpike.convert(block, [x], dataclasses.replace(ecmt(), steps=3))
    assert snn.simulate(x).steps == 3
    assert snn.simulate(x, steps=2).steps == transpike.simulate(snn, x, steps=2).steps == 2


# --- nothing else changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_the_module_and_the_inputs_stay_as_they_are(network: str) -> None:
    torch.manual_seed(3)
    model, calibration, batch = NETWORKS[network]()
    model = model.double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]
    modules = {name: (type(module), len(module._forward_hooks)) for name, module in model.named_modules()}
    leaves = list(batch.values()) if isinstance(batch, dict) else [batch]
    copies = [leaf.clone() for leaf in leaves]
    with torch.no_grad():
        answer = model(**batch) if isinstance(batch, dict) else model(batch)
    snn = transpike.convert(model, [calibration])
    for mode in ("folded", "streaming"):
        run = snn.simulate(batch, 2, mode=mode)
        assert not run.outputs.requires_grad
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert flags == [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]
    assert modules == {name: (type(module), len(module._forward_hooks)) for name, module in model.named_modules()}
    assert not model.training
    assert all(torch.equal(leaf, copy) for leaf, copy in zip(leaves, copies, strict=True))
    with torch.no_grad():
        assert torch.equal(model(**batch) if isinstance(batch, dict) else model(batch), answer)


# --- gradients -------------------------------------------------------------------------------------------------------


class WithGradients(nn.Module):
    """Layers in a region with gradients, one of them in a region without in it."""

    def __init__(self, switched: bool) -> None:
        super().__init__()
        self.switched = switched
        self.one, self.two, self.three, self.four = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad() if self.switched else contextlib.nullcontext():
            x = self.two(self.one(x).relu())
            with torch.no_grad() if self.switched else contextlib.nullcontext():
                gate = self.three(x.relu()).sigmoid()
            x = x * gate
        return self.four(x.relu()) + gate[:, :3]


def test_layers_where_gradients_are_switched_are_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.float64)
    plain = WithGradients(False).double().eval()
    switched = WithGradients(True).double().eval()
    switched.load_state_dict(plain.state_dict())
    found, expected = (transpike.convert(model, [x], ecmt(levels=3)) for model in (switched, plain))
    sites, others = ([(site.kind, site.shape, site.batch_axis) for site in snn.plan.sites] for snn in (found, expected))
    assert sites == others and len(sites) == 5
    assert str(found.plan.operator_table()) == str(expected.plan.operator_table()) and not found.unfoldable
    assert torch.equal(found.simulate(x, 3).outputs, expected.simulate(x, 3).outputs)


class Masked(nn.Module):
    """[B, 2, 4, 4] -> [B, 3], with a constant made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.tril(torch.ones(4, 4, dtype=x.dtype))
        return self.head(nn.functional.gelu(self.two(self.one(x).relu()) * mask).flatten(1))


@pytest.mark.parametrize("recipe", ["ecmt", "balanced", "mbe"])
def test_inference_mode_changes_nothing(recipe: str) -> None:
    """Neither where the model was made in it, too. Inside comes first: fits of functions are kept."""

    def run() -> tuple[Any, Any]:
        torch.manual_seed(0)
        snn = transpike.convert(Masked().double().eval(), [randn(6, 2, 4, 4)], recipe)
        return snn.thresholds, snn.simulate(randn(3, 2, 4, 4, seed=1), 2)

    with torch.inference_mode():
        thresholds, found = run()
    expected = run()
    assert thresholds == expected[0] and found.spikes.to_json() == expected[1].spikes.to_json()
    assert found.outputs.is_inference() and torch.equal(found.outputs, expected[1].outputs)


# --- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_autocast_leaves_the_state_in_float32(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    model, x = Block().float().eval(), randn(6, 4, 6).float()
    snn = transpike.convert(model, [x], "ecmt")
    arrived, states = set(), set()
    kind = type(next(iter(snn.neurons.values())))
    step = kind.step

    def spy(self: Any, state: Any, t: int, mean_in: torch.Tensor, threshold: Any) -> Any:
        result = step(self, state, t, mean_in, threshold)
        arrived.add(mean_in.dtype)
        states.update(value.dtype for value in result)
        return result

    monkeypatch.setattr(kind, "step", spy)
    plain = snn.simulate(x, 3, mode=mode)
    assert (arrived, states) == ({torch.float32}, {torch.float32})
    with torch.autocast("cpu", torch.bfloat16):
        run = snn.simulate(x, 3, mode=mode)
    assert torch.bfloat16 in arrived, "autocast did nothing"
    assert states == {torch.float32}
    assert run.outputs.isfinite().all()
    assert (run.outputs.float() - plain.outputs).abs().max() < 0.5


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_bfloat16_is_autocast_and_measured(mode: str) -> None:
    torch.manual_seed(4)
    model, x = Block().float().eval(), randn(6, 4, 6).float()
    snn = transpike.convert(model, [x])
    run = snn.simulate(x, 3, mode=mode, precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        expected = snn.simulate(x, 3, mode=mode).outputs
    assert run.outputs.dtype == torch.float32
    assert torch.equal(run.outputs, expected.float())
    plain = snn.simulate(x, 3, mode=mode).outputs
    assert 0 < (run.outputs - plain).abs().max() < 0.5
    found = check_precision(snn, x, steps=3, mode=mode)
    assert found.largest_difference == (run.outputs[-1] - plain[-1]).abs().max()
    assert found.agreement == (run.outputs[-1].argmax(-1) == plain[-1].argmax(-1)).double().mean()
    snn.precision = "bfloat16"
    assert torch.equal(snn.simulate(x, 3, mode=mode).outputs, run.outputs)
    with pytest.raises(ConfigError, match="precision must be one of float32, bfloat16, bfloat16x3, not 'float16'"):
        snn.simulate(x, 3, precision="float16")


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_autocast_leaves_float64_as_it_is(snn: transpike.SpikingModel, x: torch.Tensor, mode: str) -> None:
    plain, half = (snn.simulate(x, 3, mode=mode, precision=precision) for precision in ("float32", "bfloat16"))
    assert torch.equal(half.outputs, plain.outputs.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_refused_with_what_to_do(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    x, advice = randn(6, 4, 6).float(), r"convert model\.float\(\), and simulate with precision='bfloat16'"
    with pytest.raises(ConfigError, match=rf"embed\.weight is {dtype}; .*{advice}"):
        transpike.convert(Block().to(dtype).eval(), [x.to(dtype)])
    snn = transpike.convert(Block().float().eval(), [x])
    for arguments in ({"dtype": dtype}, {"tensor": x.to(dtype)}):
        with pytest.raises(ConfigError, match=rf"this network cannot be cast to {dtype}; .*{advice}"):
            snn.to(**arguments)
    assert snn.simulate(x, 1).outputs.dtype == torch.float32


HIDING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan_to_num": torch.nan_to_num,
    "where": lambda h: torch.where(h > 0, h, 0.0),
    "isnan": lambda h: h.masked_fill(torch.isnan(h), 0.0),
    "decision": lambda h: h.argmax(-1),
}


@pytest.mark.parametrize("mode", ["folded", "streaming"])
@pytest.mark.parametrize("name", HIDING)
def test_nan_that_an_operator_hides_is_found_where_it_arrives(mode: str, name: str) -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return HIDING[name](self.b(torch.tanh(self.a(x))))

    x = torch.randn(6, 4)
    snn = transpike.convert(Hiding().eval(), [x], ecmt(allow_unknown=name == "decision"))
    x[2, 1] = torch.nan
    for kernel in ("compiled", "eager"):
        with pytest.raises(DataError, match="site b:input received NaN or infinity"):
            snn.simulate(x, 2, mode=mode, kernel=kernel)


def test_masks_that_hide_no_signal_leave_nan_to_the_output() -> None:
    """Looking at every site costs a pass over memory; a mask of the inputs, or of positions, hides no signal."""

    class Causal(Block):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x, allowed = self.embed(x), torch.ones(4, 4, dtype=torch.bool).tril()
            scores = self.attn.q(x) @ self.attn.k(x).mT
            scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(mask[:, None] == 0, -1e9)
            return self.head(torch.where(mask[..., None] > 0, scores.softmax(-1) @ self.attn.v(x), 0.0).mean(1))

    torch.manual_seed(4)
    batch = (randn(6, 4, 6), torch.tensor([[1, 1, 1, 0]] * 6))
    assert not may_hide_nan(transpike.convert(Causal().double().eval(), [batch], "ecmt"))


def test_a_cast_network_takes_inputs_of_any_float() -> None:
    torch.manual_seed(4)
    x = randn(6, 4, 6)
    snn = transpike.convert(Block().double().eval(), [x])
    wide = snn.simulate(x, 3).outputs
    narrow = snn.to(torch.float32).simulate(x, 3).outputs
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)
    assert torch.equal(snn.simulate(x.float(), 3).outputs, narrow)


def test_a_pinned_batch_is_refused() -> None:
    """As torch 2.11 left it when attention was split: outputs would be those of some of the samples."""
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    node.meta["val"] = torch.zeros(2, 3)
    graph.output(node)
    with pytest.raises(CaptureError, match="the batch lost its symbol"):
        locate_batch(torch.fx.GraphModule(torch.nn.Module(), graph), [0])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "2", float("nan")])
def test_steps_must_be_at_least_one(snn: transpike.SpikingModel, x: torch.Tensor, steps: Any) -> None:
    with pytest.raises(ConfigError, match="steps must be a whole number of at least 1"):
        snn.simulate(x, steps)


@pytest.mark.parametrize("mode", ["fold", "", None, "FOLDED"])
def test_a_mode_must_exist(snn: transpike.SpikingModel, x: torch.Tensor, mode: Any) -> None:
    with pytest.raises(ConfigError, match="mode must be one of auto, folded, streaming"):
        snn.simulate(x, 2, mode=mode)


def test_a_model_that_mixes_its_batch_streams() -> None:
    torch.manual_seed(5)
    x = randn(6, 4)
    snn = transpike.convert(Mixing().double().eval(), [x], "ecmt")
    assert "do not stay apart" in snn.unfoldable
    assert snn.simulate(x, 2).mode == "streaming"
    with pytest.raises(ConfigError, match="cannot run folded .*use mode='streaming'"):
        snn.simulate(x, 2, mode="folded")
    assert (snn.simulate(x, 256).outputs[-1] - snn.source(x)).abs().max() < 0.05


class Centred(nn.Module):
    """Ids or vectors, less the mean over the batch."""

    def __init__(self, words: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8) if words else nn.Linear(8, 8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(x) if mask is None else self.embed(x) * mask.unsqueeze(-1)
        return self.two(self.one(x - x.mean(0)).relu())


def test_another_sample_is_made_where_the_first_is() -> None:
    with torch.device("meta"):  # the user's default
        made = _different(torch.zeros(2, 3, device="cpu"), None)
    assert made.device.type == "cpu" and len(made.unique()) == 6


@pytest.mark.parametrize("mask", [None, torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.int64)])
@pytest.mark.parametrize("x", [torch.zeros(2, 4, 8), torch.ones(2, 4, 8), torch.ones(2, 4, dtype=torch.int64)])
def test_a_constant_example_does_not_hide_that_samples_mix(x: torch.Tensor, mask: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    model = Centred(not x.is_floating_point()).eval()
    inputs = x if mask is None else (x, mask)
    thresholds = {"one:input": 1.0, "two:input": 1.0}
    assert "do not stay apart" in transpike.convert(model, thresholds, "ecmt", example=inputs).unfoldable


def test_an_example_that_cannot_tell_streams() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, n: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(torch.nn.functional.embedding(n.abs(), torch.eye(8))).relu())

    example, thresholds = torch.zeros(2, 4, dtype=torch.int64), {"one:input": 1.0, "two:input": 1.0}
    snn = transpike.convert(Counted().eval(), thresholds, "ecmt", example=example)
    assert "same value everywhere" in snn.unfoldable
    assert not transpike.convert(Counted().eval(), thresholds, "ecmt", example=example + torch.arange(4)).unfoldable


BAD_INPUTS = {
    "tokens missing": (lambda x: x[:, :3], r"^input 0 has shape \(5, 3, 6\), but the model takes \(batch, 4, 6\)"),
    "no batch": (lambda x: x[0], r"shape \(4, 6\)"),
    "one dimension more": (lambda x: x[None], "shape"),
    "integers": (lambda x: x.long(), "int64"),
    "a label beside it": (lambda x: (x, torch.zeros(5, dtype=torch.long)), "labels are not model inputs"),
    "by name": (lambda x: {"x": x}, "captured with inputs 1 positional, but this batch has x"),
    "a string": (lambda x: "x", "must be a tensor, a tuple or a dict"),
    "an array": (lambda x: x.numpy(), "ndarray"),
    "a list of lists": (lambda x: [[1.0, 2.0]], "."),
    "nothing": (lambda x: None, "NoneType"),
    "an empty batch": (lambda x: x[:0], "batch of 0"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_inputs_that_do_not_fit_are_named(snn: transpike.SpikingModel, x: torch.Tensor, case: str) -> None:
    change, message = BAD_INPUTS[case]
    with pytest.raises(DataError, match=message) as caught:
        snn.simulate(change(x), 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_nan_inputs_do_not_become_answers(snn: transpike.SpikingModel, x: torch.Tensor, mode: str) -> None:
    """Either an error or NaN in the output; never a finite answer."""
    spoiled = x.clone()
    spoiled[0, 0, 0] = torch.nan
    try:
        run = snn.simulate(spoiled, 2, mode=mode)
    except TranspikeError:
        return
    assert run.outputs[:, 0].isnan().all()


def test_names_and_batches_of_keyword_inputs() -> None:
    torch.manual_seed(6)
    snn = transpike.convert(Tokens().double().eval(), [token_batch(8)])
    batch = token_batch(3)
    reordered = dict(reversed(batch.items()))
    assert torch.equal(snn.simulate(reordered, 2).outputs, snn.simulate(batch, 2).outputs)
    wrong = [
        {"ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
        {"input_ids": batch["input_ids"]},
        {**batch, "labels": torch.zeros(3, dtype=torch.long)},
        (batch["input_ids"], batch["attention_mask"]),
    ]
    for inputs in wrong:
        with pytest.raises(DataError, match="captured with inputs attention_mask, input_ids"):
            snn.simulate(inputs, 2)
    with pytest.raises(DataError, match="^input (attention_mask has a batch of 2|input_ids has a batch of 3)"):
        snn.simulate({**batch, "attention_mask": batch["attention_mask"][:2]}, 2)
    with pytest.raises(DataError, match="input_ids is torch.float64"):
        snn.simulate({**batch, "input_ids": batch["input_ids"].double()}, 2)
    with pytest.raises(DataError, match="attention_mask is torch.bool, but the model takes torch.int64"):
        snn.simulate({**batch, "attention_mask": batch["attention_mask"].bool()}, 2)


class Borrowing(nn.Module):
    """A module of one's own around a config that speaks of a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True, to_dict=dict)
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


class Caching(Borrowing):
    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options == {"use_cache": False}
        return super().forward(x)


@pytest.mark.parametrize("kind", [Borrowing, Caching])
def test_no_cache_is_asked_for_where_there_may_be_one(kind: type[Borrowing]) -> None:
    x = torch.randn(3, 4)
    snn = transpike.convert(kind().eval(), [x], "ecmt")
    assert torch.allclose(snn.simulate(x, 256).outputs[-1], snn.source(x), atol=0.1)


def test_a_label_in_the_calibration_batch_is_explained(block: Block, x: torch.Tensor) -> None:
    with pytest.raises(TranspikeError, match="a label in the batch is not a model input"):
        transpike.convert(block, [(x, torch.zeros(5, dtype=torch.long))])
