"""The command line: the good paths, and one clear sentence with exit code 2 for each bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from transpike.cli import main
from transpike.zoo.digits import WEIGHTS_FILE, load_model

FACTORY = """
import torch
from torch import nn
class Small(nn.Module):
    pretrained_cfg = dict(input_size=(1, 6, 6), mean=(0.0,), std=(1.0,), crop_pct=1.0, interpolation="bilinear")
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        first, second, third = nn.Linear(36, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.body = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)
    def forward(self, x):
        return self.body(x)
class Strange(Small):
    def forward(self, x):
        hidden = self.body[1](x.flatten(1)).sort(-1).values
        return self.body[5](self.body[3](hidden))
def make():
    return Small().eval()
def strange():
    return Strange().eval()
def not_a_model():
    return 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a factory module, an .npz and an image folder, as the working directory."""
    (tmp_path / "mine.py").write_text(FACTORY)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (24, 6, 6), dtype=np.uint8), np.arange(24) % 3
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    np.savez(tmp_path / "other.npz", x=images[::-1] // 2)
    np.savez(tmp_path / "far.npz", x=images, y=labels + 1)
    np.savez(tmp_path / "wide.npz", x=random.random((4, 1, 7, 7), dtype=np.float32), y=labels[:4])
    np.savez(tmp_path / "nan.npz", x=np.full((4, 1, 6, 6), np.nan, np.float32), y=labels[:4])
    (tmp_path / "empty").mkdir()
    _image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def _image_folder(folder: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(1)
    for name in ("cat", "dog", "owl"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(random.integers(0, 256, (6, 6), dtype=np.uint8)).save(folder / name / f"{i}.png")
    (folder / "dog" / "1.png").write_bytes(b"not a picture")


Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], place: Path) -> Say:
    def run(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_convert_then_eval(say: Say, place: Path) -> None:
    code, out, err = say("convert mine:make --calibration other.npz --out net --recipe ecmt --levels 6")
    assert code == 0, err
    assert "body.3:input" in out and "levels=6" in out and "saved to net" in out
    code, out, err = say("eval net --data data.npz --steps 4 --json r/report.json --model mine:make --spikes")
    assert code == 0, err
    assert "agreement" in out and "body.5:input" in out
    report = json.loads((place / "r/report.json").read_text())
    for key in ("accuracy", "agreement", "spikes_per_neuron"):
        assert len(report[key]) == 4
    assert report["samples"] == 24 and report["source"]["accuracy"] is not None
    assert len(report["energy"]["ratio"]) == 4
    for key in ("command", "versions", "seed", "data", "recipe", "sites"):
        assert report[key] is not None


def test_one_source_for_both_is_split_and_the_split_recorded(say: Say, place: Path) -> None:
    code, _, err = say("eval mine:make --data data.npz --calibration data.npz --samples 9 --steps 2 --json r.json")
    assert code == 0 and "9 random samples (seed 0) calibrate, the other 15 are evaluated" in err
    report = json.loads((place / "r.json").read_text())
    used, kept = report["calibration"]["data"]["indices"], report["data"]["indices"]
    assert report["samples"] == 15 == len(kept) and len(used) == 9
    assert not set(used) & set(kept)
    assert report["calibration"]["data"]["fingerprint"] == report["data"]["fingerprint"]


def test_samples_that_calibrated_a_saved_network_are_left_out(say: Say, place: Path) -> None:
    assert say("convert mine:make --calibration data.npz --every 4 --out net --quiet")[0] == 0
    code, _, err = say("eval net --model mine:make --data data.npz --steps 2 --json r.json")
    assert code == 0 and "6 samples of data.npz calibrated this network and are left out" in err
    assert json.loads((place / "r.json").read_text())["data"]["indices"] == [i for i in range(24) if i % 4]


def test_an_image_that_does_not_decode_is_named_and_the_run_goes_on(say: Say, place: Path) -> None:
    code, _, err = say("eval mine:make --data images --calibration other.npz --steps 2 --report out --json r.json")
    assert code == 0 and "skipped" in err and "1.png" in err and "1 samples could not be read" in err
    report = json.loads((place / "r.json").read_text())
    assert report["samples"] == 8 and report["failed"]["count"] == 1 and "1.png" in report["failed"]["items"][0]["item"]
    assert (place / "out/accuracy.png").read_bytes()[:4] == (place / "out/firing.png").read_bytes()[:4] == b"\x89PNG"


def test_demo(say: Say, place: Path) -> None:
    code, out, err = say("demo --out shown --steps 2")
    assert code == 0, err
    assert {p.name for p in (place / "shown").iterdir()} == {"network", "report.json", "accuracy.png", "firing.png"}
    assert json.loads((place / "shown/report.json").read_text())["accuracy"][1] > 0.95
    assert "\x1b[" not in out


def test_inspect_names_the_unknown_and_allow_unknown_lists_it(say: Say, place: Path) -> None:
    code, out, err = say("inspect mine:strange")
    assert code == 2 and "UNKNOWN" in out and "sort" in out and "have no rule" in err
    code, _, err = say("convert mine:strange --calibration other.npz --out net")
    assert code == 2 and "sort" in err and not (place / "net").exists()
    assert say("convert mine:strange --calibration other.npz --out net --allow-unknown --quiet")[0] == 0
    assert say("eval net --model mine:strange --data data.npz --steps 2 --json r.json")[0] == 0
    assert "sort" in json.dumps(json.loads((place / "r.json").read_text())["plan"]["unknown"])


def test_inspect_digits(say: Say) -> None:
    code, out, _ = say("inspect digits --json plan.json")
    assert code == 0
    for text in ("blocks.0.attn:softmax", "layer_norm.default", "compensated", "passes through", "patch_embed.proj"):
        assert text in out


BAD = {
    "eval mine:make --data data.npz --steps 0": "--steps must be at least 1",
    "eval mine:make --data data.npz --steps -1": "--steps must be at least 1",
    "eval mine:make --data data.npz --levels 0": "levels must be a whole number",
    "eval mine:make --data data.npz --percentile 0": "percentile must be in (0, 1]",
    "eval mine:make --data data.npz --percentile 1.5": "percentile must be in (0, 1]",
    "eval mine:make --data data.npz --mode sideways": "mode must be one of",
    "eval mine:make --data data.npz --recipe ecmd": "did you mean ecmt",
    "eval mine:make --data data.npz --set nonsense=1": "nonsense",
    "eval mine:make --data data.npz --batch-size 0": "batch_size 0",
    "eval mine:make --data images --mean a,b": "expected numbers",
    "eval mine:make --data nowhere.npz": "does not exist",
    "eval mine:make --data empty": "empty",
    "eval mine:make --data far.npz": "label 3 but the model has 3 classes",
    "eval mine:make --data wide.npz --calibration other.npz": "(4, 1, 7, 7)",
    "eval mine:make --data nan.npz --calibration other.npz": "NaN",
    "eval mine:make --data data.npz --calibration nan.npz": "NaN",
    "eval mine:nothing --data data.npz": "nothing",
    "eval mine:not_a_model --data data.npz": "Module",
    "eval absent_module:make --data data.npz": "absent_module",
    "eval plainword --data data.npz": "names no model",
    "eval timm:vit_smal_patch16_224 --data images": "vit_small_patch16_224",
    "eval hf:no/such/model --data images": "no/such/model",
    "eval digits --data digits --option depth=3": "takes no options",
    "eval digits --data digits --option depth": "KEY=VALUE",
    "eval digits --data digits --checkpoint absent.safetensors": "absent.safetensors",
    "eval digits --data digits --checkpoint pickled.pt": "pickle",
    "eval digits --data digits --checkpoint cut.safetensors": "cut.safetensors",
    "eval digits --data digits --checkpoint nan.safetensors": "NaN",
    "eval digits --data digits --checkpoint alien.safetensors": "missing",
    "eval digits --data digits --limit 30 --steps 1 --json .": "cannot write",
    "convert digits --calibration digits --out data.npz": "it is a file",
    "convert digits --calibration digits --out x --samples 0": "at least 1",
    "inspect digits --input-shape 3,8,8": "error",
    "eval net-that-is-not --data digits": "names no model",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2(line: str, say: Say, place: Path) -> None:
    torch.save({"a": torch.ones(1)}, place / "pickled.pt")
    weights = safetensors.torch.load_file(WEIGHTS_FILE)
    (place / "cut.safetensors").write_bytes(Path(WEIGHTS_FILE).read_bytes()[:5000])
    safetensors.torch.save_file({**weights, "head.bias": weights["head.bias"] * torch.nan}, place / "nan.safetensors")
    safetensors.torch.save_file({"stem.weight": torch.ones(2)}, place / "alien.safetensors")
    before = sorted(place.rglob("*"))
    code, _, err = say(line)
    errors = [text for text in err.splitlines() if text.startswith("error:")]
    assert code == 2, err
    assert len(errors) == 1 and BAD[line] in errors[0], err
    assert "Traceback" not in err
    assert sorted(p for p in place.rglob("*") if "__pycache__" not in p.parts) == before


def test_every_image_corrupt(say: Say, place: Path) -> None:
    for path in (place / "images").rglob("*.png"):
        path.write_bytes(b"x")
    code, _, err = say("eval mine:make --data images --calibration other.npz --steps 1")
    assert code == 2 and "none of the 9 samples" in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk(place: Path) -> None:
    """No file may grow beyond 20 kB: the weights do not fit."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from transpike.cli import main;"
        "sys.exit(main('convert digits --calibration digits --out net --quiet'.split()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place)
    assert done.returncode == 2, done.stderr
    assert "error: cannot write" in done.stderr and "Traceback" not in done.stderr
    assert not list((place / "net").iterdir())


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command, options in {
        "inspect": ("--checkpoint", "--input-shape"),
        "convert": ("--calibration", "--recipe", "--out", "--percentile"),
        "eval": ("--data", "--steps", "--json", "--report", "--every"),
        "demo": ("--out", "--steps"),
    }.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(option in text for option in options)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("transpike ")
    assert main(["eval", "digits", "--nonsense"]) == 2


def test_interrupted(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike.pipeline.ModelChoice.load", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert say("demo")[0] == 130


def test_the_model_is_left_as_it_was() -> None:
    model = load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    import transpike

    transpike.convert(model, [torch.rand(4, 1, 8, 8)]).simulate(torch.rand(4, 1, 8, 8), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
