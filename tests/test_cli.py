"""The command line, as a stranger uses it when nothing is wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli_place import furnish, pictures
from transpike.cli import main
from transpike.cli.options import device
from transpike.data import open_data
from transpike.pipeline import DataChoice
from transpike.recipes import RECIPES
from transpike.zoo.digits import load_model

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
PICTURES = ("accuracy.png", "energy.png", "firing.png")
TINY = "timm:vit_tiny_patch16_224 --option img_size=32 --option depth=1"
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], place: Path) -> Say:
    def run(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        out, err = capsys.readouterr()
        return code, out, err

    return run


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))


def test_convert_then_eval(say: Say, place: Path) -> None:
    code, out, err = say("convert mine:make --calibration other.npz --out net --recipe ecmt --levels 6")
    assert code == 0 and err == ""
    assert "body.3:input" in out and "levels=6" in out and out.endswith("saved to net\n")
    code, out, err = say("eval net --data data.npz --steps 4 --json r/report.json --model mine:make --spikes")
    assert code == 0 and err == "wrote r/report.json\n"
    assert "agreement" in out and "body.5:input" in out
    assert read(place / "r/report.json")["samples"] == 24


def test_the_report_has_the_numbers_and_the_way_to_repeat_them(say: Say, place: Path) -> None:
    assert say("eval digits --data digits --limit 40 --steps 3 --seed 5 --json a.json")[0] == 0
    report = read(place / "a.json")
    for key in ("accuracy", "agreement", "spikes_per_neuron"):
        assert len(report[key]) == report["steps"] == 3
    assert report["samples"] == 20 and report["seed"] == 5
    assert 0.8 < report["source"]["accuracy"] <= 1 and report["source"]["spec"] == "digits"
    assert len(report["energy"]["ratio"]) == 3 and report["energy"]["prices"]["pj"]
    for key in ("versions", "data", "calibration", "recipe", "sites", "plan", "mode"):
        assert report[key], key
    assert report["failed"] == {"count": 0, "items": []}
    assert report["command"][0] == "transpike"
    assert main([*report["command"][1:-1], "b.json"]) == 0
    again = read(place / "b.json")
    assert all(again[key] == report[key] for key in report.keys() - {"seconds", "command"})


def test_one_source_for_both_is_split_and_the_split_recorded(say: Say, place: Path) -> None:
    code, _, err = say("eval mine:make --data data.npz --calibration data.npz --samples 9 --steps 2 --json r.json")
    assert code == 0 and "9 random samples (seed 0) calibrate, the other 15 are evaluated" in err
    report = read(place / "r.json")
    used, kept = report["calibration"]["data"]["indices"], report["data"]["indices"]
    assert report["samples"] == 15 == len(kept) and len(used) == 9
    assert sorted(used + kept) == list(range(24))
    assert report["calibration"]["data"]["fingerprint"] == report["data"]["fingerprint"]


def test_every_kth_sample_of_another_source_calibrates(say: Say, place: Path) -> None:
    for every, used in {5: [0, 5, 10, 15, 20], 1: list(range(24))}.items():
        line = f"eval mine:make --data data.npz --calibration other.npz --every {every} --steps 1 --json r.json"
        code, _, err = say(line)
        assert code == 0 and "share" not in err
        assert read(place / "r.json")["calibration"]["data"]["indices"] == used
    assert say("convert mine:make --calibration other.npz --every 1 --out net --quiet")[0] == 0
    assert read(place / "net/config.json")["calibration"]["samples"] == 24


def test_samples_that_calibrated_a_saved_network_are_left_out(say: Say, place: Path) -> None:
    assert say("convert mine:make --calibration data.npz --every 4 --out net --quiet")[0] == 0
    code, _, err = say("eval net --model mine:make --data data.npz --steps 2 --json r.json")
    assert code == 0 and "6 samples of data.npz calibrated this network and are left out" in err
    assert read(place / "r.json")["data"]["indices"] == [i for i in range(24) if i % 4]


def test_samples_that_tuned_the_recipe_of_a_saved_network_are_left_out(say: Say, place: Path) -> None:
    tuned = {"fingerprint": open_data("data.npz").fingerprint(), "indices": [0, 5, 7]}
    (place / "r.json").write_text(json.dumps({**RECIPES["ecmt"]().to_json(), "tuned": tuned}))
    assert say("convert mine:make --calibration data.npz --every 8 --recipe r.json --out net --quiet")[0] == 0
    code, _, err = say("eval net --model mine:make --data data.npz --steps 1 --json e.json")
    assert code == 0 and "3 samples of data.npz calibrated this network and are left out; " in err
    assert "2 samples of data.npz tuned the recipe and are left out" in err
    assert read(place / "e.json")["data"]["indices"] == sorted(set(range(24)) - {0, 8, 16, 5, 7})


@pytest.mark.parametrize(
    ("asked", "mean", "std", "size"),
    [
        ({"mean": (0.5, 0.2, 0.1)}, (0.5, 0.2, 0.1), (1, 1, 1), 6),
        ({"std": (0.5, 0.2, 0.1), "mean": (0.0, 0.0, 0.0)}, (0, 0, 0), (0.5, 0.2, 0.1), 6),
        ({"input_size": (3, 4, 4)}, (0, 0, 0), (1, 1, 1), 4),
    ],
)
def test_where_nobody_says_otherwise_images_stay_as_they_are(
    asked: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...], size: int, place: Path
) -> None:
    with Image.open(place / "images/cat/0.png") as image:
        pixels = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC)))
    expected = (pixels.permute(2, 0, 1) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    samples = DataChoice("images", preprocess=asked).open(torch.nn.Identity())
    torch.testing.assert_close(samples.fetch(0)[0], expected)


def test_one_source_of_two_splits_calibrates_on_the_first(say: Say, place: Path) -> None:
    for split, count in {"train": 4, "test": 3}.items():
        pictures(place / "both" / split, 6, count, seed=count)
    assert say("eval mine:make --data both --calibration both --samples 5 --steps 1 --json r.json")[0] == 0
    report = read(place / "r.json")
    assert report["samples"] == 9 and report["calibration"]["data"]["of"] == 12


def test_options_that_are_for_the_calibration_are_not_refused(say: Say, place: Path) -> None:
    np.savez(place / "floats.npz", x=np.random.default_rng(0).random((8, 1, 6, 6), dtype=np.float32))
    line = "eval mine:make --data floats.npz --calibration other.npz --mean 0.5 --std 1 --steps 1"
    code, _, err = say(line)
    assert code == 0, err


def test_prices_hold_for_every_account(say: Say, place: Path) -> None:
    code, out, _ = say("eval mine:make --data data.npz --steps 2 --prices davidson_furber_22fdx --json r.json")
    report = read(place / "r.json")
    assert code == 0 and "prices: davidson-furber-22fdx" in out
    assert report["energy"]["prices"]["name"] == report["energy_sheet"]["prices"]["name"] == "davidson-furber-22fdx"


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("eval {} --data tokens.npz --every 3 --recipe ecmt --steps 3", ("accuracy", "agreement", "spikes_per_neuron")),
        ("compare {} --data tokens.npz --every 3 --recipes ecmt --steps 1,3", ("source", "recipes")),
        ("tune {} --data tokens.npz --samples 8 --few 4 --settings 2 --max-drop 0", ("chosen", "front")),
    ],
)
def test_where_the_batch_is_changes_nothing(line: str, numbers: tuple[str, ...], say: Say, place: Path) -> None:
    options = {"mine:batch_first": "--json a.json", "mine:tokens_first": "--batch-dim 1 --json b.json"}
    codes = [say(f"{line.format(model)} --batch-size 3 {more}")[0] for model, more in options.items()]
    assert codes[0] == codes[1] < 2
    texts = [json.dumps({name: read(place / file)[name] for name in numbers}) for file in ("a.json", "b.json")]
    texts = [re.sub(r'"(spec|seconds)": [^,]+', "", text) for text in texts]
    one, other = (re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.5g}", text) for text in texts)
    assert one == other


def test_a_saved_network_knows_where_its_batch_is(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "convert mine:tokens_first --calibration tokens.npz --samples 3 --batch-dim 1 --recipe ecmt --out net --quiet"
    )
    assert say(line)[0] == 0
    opened, open_samples = [], DataChoice.open
    monkeypatch.setattr(DataChoice, "open", lambda self, *more: opened.append(self) or open_samples(self, *more))
    for command in ("eval", "layers"):
        line = f"{command} net --model mine:tokens_first --data tokens.npz --steps 2 --json {command}.json"
        assert say(line)[0] == 0
    report = read(place / "eval.json")
    layers = read(place / "layers.json")
    assert report["samples"] == report["labelled"] == 7 == layers["samples"] and len(opened) == 2
    assert layers["command"] == ["transpike", *line.split()]


def test_samples_that_calibrated_without_their_labels_are_left_out(say: Say, place: Path) -> None:
    with np.load(place / "data.npz") as arrays:
        np.savez(place / "bare.npz", x=arrays["x"])
    assert say("convert mine:make --calibration bare.npz --every 4 --out net --quiet")[0] == 0
    code, _, err = say("eval net --model mine:make --data data.npz --steps 1 --json r.json")
    assert code == 0 and "6 samples of data.npz calibrated this network and are left out" in err
    assert read(place / "r.json")["data"]["indices"] == [i for i in range(24) if i % 4]


def test_an_image_that_does_not_decode_is_named_and_the_run_goes_on(say: Say, place: Path) -> None:
    (place / "images/dog/1.png").write_bytes(b"not a picture")
    code, _, err = say("eval mine:make --data images --calibration other.npz --steps 2 --report out --json r.json")
    assert code == 0 and "1 sample skipped as unreadable" in err
    assert [line for line in err.splitlines() if "dog/1.png" in line] == [
        "skipped: dog/1.png cannot be decoded as an image (no JPEG, PNG, BMP or WebP); replace or remove it"
    ]
    report = read(place / "r.json")
    assert report["samples"] == 8 and report["failed"]["count"] == 1
    assert report["failed"]["items"][0]["item"] == "dog/1.png"
    assert all((place / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in PICTURES)


def test_file_names_that_are_no_utf8(say: Say, place: Path) -> None:
    folder = place / os.fsdecode(b"bilder-\xfc")
    try:
        (place / "images/dog").rename(folder)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    (folder / "1.png").rename(folder / os.fsdecode(b"gr\xfcn.png"))
    code, out, err = say(f"convert mine:make --calibration {folder.name} --recipe ecmt --out net --quiet")
    assert code == 0, err
    record = read(place / "net/config.json")["calibration"]
    assert record["data"] == r"bilder-\udcfc" and record["name"] == record["data"] and len(record["digests"]) == 3


def test_demo(say: Say, place: Path) -> None:
    code, out, err = say("demo --out shown --steps 2")
    assert code == 0, err
    assert {p.name for p in (place / "shown").iterdir()} == {"network", "report.json", *PICTURES}
    report = read(place / "shown/report.json")
    assert report["accuracy"][1] > 0.95 and " ".join(report["command"]) == "transpike demo --out shown --steps 2"
    assert "\x1b[" not in out + err


def test_a_timm_model_on_a_folder_of_images(say: Say, place: Path) -> None:
    pytest.importorskip("timm")
    pictures(place / "photos", 40)
    pictures(place / "more", 40, 5)
    code, out, err = say(f"convert {TINY} --calibration photos --out net --mean 0.1,0.2,0.3 --quiet")
    assert code == 0 and "random weights" in err and len(out.splitlines()) == 2
    said = [say(f"eval net --data more --steps 2{more}") for more in ("", " --mean 0.1,0.2,0.3", " --mean 0.9")]
    assert [code for code, _, _ in said] == [0, 0, 0]
    assert said[0] == said[1] != said[2]  # how images were prepared is saved with the network
    assert say(f"eval {TINY} --data photos --steps 1 --mode streaming")[0] == 0


def test_a_hugging_face_folder_on_texts(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(place / "cache"))
    datasets.disable_progress_bars()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "was", "the", "not"]
    (place / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(place / "vocab.txt")).save_pretrained(place / "bert")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(place / "bert")
    for name, first in {"train.csv": "good", "test.csv": "bad"}.items():
        with (place / name).open("w", newline="") as file:
            rows = [(f"the film was {'not ' * (i % 3)}{first}", i % 2) for i in range(8)]
            csv.writer(file).writerows([("text", "label"), *rows])
    code, _, err = say("convert hf:bert --calibration datasets:train.csv --out net --quiet")
    assert code == 0, err  # texts are padded to the 12 positions that the model has
    code, out, err = say("eval net --data datasets:test.csv --steps 2 --json r.json")  # the tokenizer is that of bert
    assert code == 0 and "agreement" in out, err
    assert read(place / "r.json")["samples"] == 8
    (place / "bert").rename(place / "moved")
    code, _, err = say("eval net --data datasets:test.csv --steps 2")
    assert code == 2 and "--model hf:FOLDER" in err
    assert say("eval net --data datasets:test.csv --steps 2 --model hf:moved")[1] == out


@pytest.mark.shared
def test_a_model_of_the_examples(say: Say, place: Path) -> None:
    weights = SHARED / "data/vit-mnist/vit_mnist_gpu.safetensors"
    if not weights.is_file():
        pytest.skip("the shared models and data are not here")
    images = SHARED / "data/mnist/mnist_test.npz"
    line = f"eval shared_models:mnist_vit --checkpoint {weights} --data {images} --limit 60 --steps 4 --json r.json"
    code, _, err = say(line)
    assert code == 0, err
    report = read(place / "r.json")
    assert report["source"]["accuracy"] > 0.9 and report["agreement"][3] > 0.9


def test_inspect_names_the_unknown_and_allow_unknown_lists_it(say: Say, place: Path) -> None:
    code, out, err = say("inspect mine:strange")
    assert code == 2 and "UNKNOWN" in out and "sort" in out
    assert err.startswith("error:") and "sort.default in order" in err and "--allow-unknown" in err
    code, _, err = say("convert mine:strange --calibration other.npz --out net")
    assert code == 2 and "sort.default in module order" in err and not (place / "net").exists()
    assert say("convert mine:strange --calibration other.npz --out net --allow-unknown --quiet")[0] == 0
    assert say("eval net --model mine:strange --data data.npz --steps 2 --json r.json")[0] == 0
    unknown = read(place / "r.json")["plan"]["unknown"]
    assert [(item["op"], item["module"]) for item in unknown] == [("sort.default", "order")]


def test_inspect_digits(say: Say, place: Path) -> None:
    code, out, err = say("inspect digits --json plan.json")
    assert code == 0 and err == "wrote plan.json\n"
    for text in ("blocks.0.attn:softmax", "layer_norm.default", "compensated", "passes through", "patch_embed.proj"):
        assert text in out
    assert read(place / "plan.json")["sites"]
    code, out, _ = say("inspect mine:make --input-shape 1,6,6")
    assert code == 0 and "body.3:input" in out


def test_piped_output_is_plain_and_whole(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    code, out, err = say("eval digits --data digits --limit 20 --steps 1 --spikes")
    assert code == 0 and "\x1b" not in out + err and "\r" not in out + err
    header = next(line for line in out.splitlines() if "energy ratio" in line)
    assert len(header) > 80 and header.split()[0] == "t"
    assert "wrote" not in out and "calibrat" not in out  # remarks go to standard error


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command, options in {
        "inspect": "--checkpoint --pretrained --option --recipe --input-shape --batch-dim --json",
        "convert": "--calibration --out --recipe --levels --percentile --allow-unknown --samples --every --mean",
        "eval": "--data --steps --json --report --calibration --model --recipe --every --mode --labels --split",
        "layers": "--data --steps --json --report --levels",
        "literal": "--data --steps --limit --state --float64 --json",
        "demo": "--out --steps --recipe",
    }.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: transpike {command}")
        assert not [option for option in options.split() if option not in text]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("transpike ")
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "eval" in err and "demo" in err


def test_interrupted(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    def stumble(self: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'")  # as from an import half done

    for happening in (interrupt, stumble):
        monkeypatch.setattr("transpike.pipeline.ModelChoice.load", happening)
        assert say("demo") == (130, "", "interrupted\n")


def test_a_mistake_of_ours_is_not_hidden(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike.pipeline.ModelChoice.load", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_the_model_is_left_as_it_was() -> None:
    import torch

    import transpike

    model = load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transpike.convert(model, [torch.rand(4, 1, 8, 8)]).simulate(torch.rand(4, 1, 8, 8), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_device_is_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device("auto") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device("auto") == "cuda:1"
    assert device("auto", spread=True) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("auto") == "cpu"
