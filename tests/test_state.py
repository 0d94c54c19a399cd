"""A run in spikes stops, is kept in a file, and goes on as if it had never stopped; anything else is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import transpike
from families import FAMILIES
from test_families import batch, no_fast_path  # noqa: F401
from transpike._literal import Literal
from transpike._model import SpikingModel
from transpike._state import State, checksum
from transpike.cli import main
from transpike.codecs.state_file import FORMAT, load_state, network_of, save_state
from transpike.errors import ConfigError, DataError
from transpike.recipes import RECIPES
from transpike.zoo.digits import load_digits, load_model


def digits(recipe: str = "ecmt", count: int = 6) -> tuple[SpikingModel, torch.Tensor]:
    images = torch.from_numpy(load_digits("test")[0][:count]).float().unsqueeze(1) / 16
    return transpike.convert(load_model(), [images], recipe), images


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[SpikingModel, torch.Tensor, Path]:
    snn, images = digits()
    _, state = Literal(snn).run(images, steps=2)
    return snn, images, save_state(snn, state, tmp_path_factory.mktemp("state") / "deep" / "run.state")


def rewritten(path: Path, to: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: object) -> Path:
    """The file again, with other tensors or other values in its header, and a checksum that fits them."""
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[FORMAT])
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(own | (tensors or {}), to, metadata={FORMAT: json.dumps(header | changes)})
    return to


# --- what continues --------------------------------------------------------------------------------------------------


# A ViT, a CNN and a language model take turns over the recipes.
IN_TURN = ("timm_vit_tiny_patch16_224", "timm_resnet18", "hf_gpt2")


@pytest.mark.parametrize(("name", "recipe"), [(IN_TURN[turn % 3], recipe) for turn, recipe in enumerate(RECIPES)])
def test_three_steps_a_file_and_three_more_are_six(name: str, recipe: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    inputs = batch(family, 2)
    snn = transpike.convert(family.build(), [inputs], RECIPES[recipe](**({"levels": 3} if recipe == "mbe" else {})))
    whole, last = Literal(snn).run(inputs, steps=6)
    first, state = Literal(snn).run(inputs, steps=3)
    path = save_state(snn, state, tmp_path / "run.state")
    rest, end = Literal(snn).run(inputs, steps=6, state=load_state(snn, path, inputs=inputs))
    assert torch.equal(torch.cat([first.outputs, rest.outputs]), whole.outputs)
    assert (state.t, end.t) == (3, 6)
    for site, counts in whole.spikes.spikes.items():
        assert counts.tolist() == [*first.spikes.spikes[site].tolist(), *rest.spikes.spikes[site].tolist()]
        assert torch.equal(end.membranes[site], last.membranes[site])
    assert all(torch.equal(a, b) for node in last.sums for a, b in zip(end.sums[node], last.sums[node], strict=True))
    for one, other in ((end.products, last.products), (end.emitted, last.emitted)):
        assert one.keys() == other.keys() and all(torch.equal(one[node], other[node]) for node in other)


def test_another_process_knows_the_network() -> None:
    """Nothing that names an operator differs between processes (a function's address would)."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_state as t; "
        "print(t.network_of(t.digits(count=2)[0])['operators'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split()[-1] == network_of(digits(count=2)[0])["operators"]


def test_a_run_leaves_the_state_it_began_with_as_it_is() -> None:
    snn, images = digits(count=2)
    _, state = Literal(snn).run(images, steps=1)
    before = {site: membrane.clone() for site, membrane in state.membranes.items()}
    one, _ = Literal(snn).run(images, steps=3, state=state)
    again, _ = Literal(snn).run(images, steps=3, state=state)
    assert state.t == 1 and torch.equal(one.outputs, again.outputs)
    assert all(torch.equal(state.membranes[site], value) for site, value in before.items())


def test_the_state_fits_the_network_saved_and_loaded(
    kept: tuple[SpikingModel, torch.Tensor, Path], tmp_path: Path
) -> None:
    snn, images, path = kept
    loaded = transpike.load(snn.save_pretrained(tmp_path / "net"))
    whole, _ = Literal(snn).run(images, steps=3)
    rest, _ = Literal(loaded).run(images, steps=3, state=load_state(loaded, path))
    assert torch.equal(rest.outputs[0], whole.outputs[2])


def test_the_same_state_gives_the_same_bytes(kept: tuple[SpikingModel, torch.Tensor, Path], tmp_path: Path) -> None:
    snn, _, path = kept
    assert save_state(snn, load_state(snn, path), tmp_path / "again").read_bytes() == path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again"]


def test_tensors_are_named_as_the_page_says(kept: tuple[SpikingModel, torch.Tensor, Path]) -> None:
    snn, images, path = kept
    stored = safetensors.torch.load_file(path)
    kinds = {name.partition("/")[0] for name in stored}
    assert kinds == {"membrane", "sum", "product", "emitted", "output"}
    run, _ = Literal(snn).run(images, steps=2)
    assert torch.equal(stored["output"] / 2, run.outputs[1])  # rate code: the output is the mean
    assert {name.partition("/")[2] for name in stored if name.startswith("membrane/")} == set(snn.neurons)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_state_of_another_network_is_refused(kept: tuple[SpikingModel, torch.Tensor, Path], tmp_path: Path) -> None:
    snn, images, path = kept
    for recipe, named in (("ecmt-code", "other recipe"), ("differential", "other recipe and thresholds")):
        with pytest.raises(ConfigError, match=f"state of another network: {named}"):
            load_state(digits(recipe)[0], path)
    model = load_model()
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    nearly = transpike.convert(model, snn.thresholds, "ecmt", example=images)
    with pytest.raises(ConfigError, match="another network: other weights; go on with the network it was made with"):
        load_state(nearly, path)
    family = next(family for family in FAMILIES if family.name == "torch_pre_norm")
    with pytest.raises(ConfigError, match="sites and thresholds and operators and weights"):
        load_state(transpike.convert(family.build(), [batch(family, 2)], "ecmt"), path)
    assert network_of(snn) == network_of(transpike.convert(load_model(), snn.thresholds, "ecmt", example=images))


def test_other_inputs_are_refused(kept: tuple[SpikingModel, torch.Tensor, Path]) -> None:
    snn, images, path = kept
    state = load_state(snn, path)
    for inputs, said in (
        (images[:5], r"shape \[6, 1, 8, 8\], not \[5, 1, 8, 8\]"),
        (images.flip(0), r"other inputs of shape \[6, 1, 8, 8\]"),
    ):
        with pytest.raises(DataError, match=said):
            load_state(snn, path, inputs=inputs)
        with pytest.raises(DataError, match=said):
            Literal(snn).run(inputs, steps=3, state=state)
    with pytest.raises(DataError, match="the model takes"):
        load_state(snn, path, inputs=torch.zeros(6, 1, 9, 9))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(
    share: float, kept: tuple[SpikingModel, torch.Tensor, Path], tmp_path: Path
) -> None:
    snn, _, path = kept
    data = path.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ConfigError, match="cut is not a whole state file"):
        load_state(snn, tmp_path / "cut")


def test_a_changed_byte_and_a_nan_are_refused(kept: tuple[SpikingModel, torch.Tensor, Path], tmp_path: Path) -> None:
    snn, images, path = kept
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    (tmp_path / "bent").write_bytes(data)
    with pytest.raises(ConfigError, match="bent is damaged: its tensors are not those that were written"):
        load_state(snn, tmp_path / "bent")
    state = load_state(snn, path)
    site = next(iter(state.membranes))
    for bad in (torch.nan, torch.inf):
        spoilt = state.copy()
        spoilt.membranes[site] = torch.full_like(state.membranes[site], bad)
        with pytest.raises(DataError, match=f"step 2 holds NaN or infinity in membrane/{site}"):
            save_state(snn, spoilt, tmp_path / "none")
    with pytest.raises(DataError, match="received NaN or infinity"):
        Literal(snn).run(torch.full_like(images, torch.nan), steps=1)
    assert not (tmp_path / "none").exists()


def test_headers_that_make_no_sense_are_refused(kept: tuple[SpikingModel, torch.Tensor, Path], tmp_path: Path) -> None:
    snn, _, path = kept
    strange = {"odd/name": torch.zeros(2)}
    for changes, said in (
        ({"format_version": 2}, "format version 2"),
        ({"format": "other"}, "not the state of a run"),
        ({"step": True}, "step cannot be True"),
        ({"step": 0}, "step cannot be 0"),
        ({"network": []}, r"network cannot be \[\]"),
        ({"network": {}}, "another network: other recipe and sites"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_state(snn, rewritten(path, tmp_path / "x", **changes))
    named = sorted({**safetensors.torch.load_file(path), **strange}.items())
    with pytest.raises(ConfigError, match="no known name"):
        load_state(snn, rewritten(path, tmp_path / "x", strange, sha256=checksum(named)))
    with pytest.raises(ConfigError, match="there is no state file"):
        load_state(snn, tmp_path / "absent")
    safetensors.torch.save_file(strange, tmp_path / "plain")
    with pytest.raises(ConfigError, match="not the state of a run"):
        load_state(snn, tmp_path / "plain")


def test_steps_that_are_done_already_are_refused(kept: tuple[SpikingModel, torch.Tensor, Path]) -> None:
    snn, images, path = kept
    state = load_state(snn, path)
    for steps in (1, 2):
        with pytest.raises(ConfigError, match=f"after step 2 already; ask for more steps than 2, not {steps}"):
            Literal(snn).run(images, steps=steps, state=state)
    for steps in (0, True, 1.5):
        with pytest.raises(ConfigError, match="whole number of at least 1"):
            Literal(snn).run(images, steps=steps)  # type: ignore[arg-type]


def test_nothing_is_saved_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="before the first step"):
        save_state(digits(count=2)[0], State(), tmp_path / "none")
    assert not list(tmp_path.iterdir())


# --- command line ----------------------------------------------------------------------------------------------------


def convert_digits(out: str, *, samples: int) -> None:
    line = f"convert digits --calibration digits --samples {samples} --recipe ecmt --out {out} --quiet"
    assert main(line.split()) == 0


def test_the_command_line_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    convert_digits("net", samples=32)
    convert_digits("other", samples=16)
    line = "literal net --data digits --limit 3 --float64"
    assert main(f"{line} --steps 4 --json whole.json".split()) == 0
    out, err = capsys.readouterr()[0], ""
    assert "Drift of the network in spikes" in out
    whole = json.loads(Path("whole.json").read_text())
    assert whole["spikes"] == [0, 0, 0, 0] and max(whole["outputs"]) < 1e-12 * whole["scale"]
    assert min(whole["emitted"]) > 100
    assert main(f"{line} --steps 2 --state run.state".split()) == 0
    assert main(f"{line} --steps 4 --state run.state --json rest.json".split()) == 0
    err = capsys.readouterr().err
    assert "run.state holds step 2; going on behind it" in err and "the state after step 4" in err
    rest = json.loads(Path("rest.json").read_text())
    assert rest["first"] == 3
    assert [rest[key] for key in ("outputs", "emitted")] == [whole[key][2:] for key in ("outputs", "emitted")]
    for bad, said in {
        f"{line} --steps 4 --state run.state": "after step 4 already; ask for more steps than 4",
        f"{line.replace('net', 'other')} --steps 5 --state run.state": "another network: other thresholds",
        "literal net --data digits --limit 3 --steps 5 --state run.state": "another network: other weights",
        f"{line} --seed 1 --steps 5 --state run.state": "other inputs of shape [3, 1, 8, 8]",
        f"{line} --steps 0": "--steps must be at least 1",
        f"{line} --state .": "it is a folder",
    }.items():
        assert main(bad.split()) == 2
        err = capsys.readouterr().err
        assert err.count("error:") == 1 and said in err, err


def test_an_interrupted_run_goes_on_behind_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    convert_digits("net", samples=32)
    step = Literal.step

    def stopped(self: Literal, *rest: object) -> torch.Tensor:
        if rest[2] == 3:
            raise KeyboardInterrupt
        return step(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Literal, "step", stopped)
        assert main(["literal", "net", "--data", "digits", "--steps", "4", "--state", "run.state"]) == 130
    assert main(["literal", "net", "--data", "digits", "--steps", "4", "--state", "run.state"]) == 0
    assert "holds step 2" in capsys.readouterr().err
