"""The command line: one clear sentence, exit code 2 and nothing half-written for each thing a user can get wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli_place import checkpoints, furnish
from transpike.cli import main

MINE = "eval mine:make --data data.npz --calibration other.npz"
DIGITS = "eval digits --data digits"
TINY = "eval timm:vit_tiny_patch16_224 --option img_size=32 --option depth=1 --data images"
REMARKS = ("calibration and evaluation share ", "skipped: ", "timm:vit_tiny_patch16_224 has random weights")

WEIGHTS = {
    f"{DIGITS} --checkpoint absent.safetensors": "there is no checkpoint absent.safetensors",
    f"{DIGITS} --checkpoint cut.safetensors": "cut.safetensors is corrupt, truncated",
    f"{DIGITS} --checkpoint nothing.safetensors": "nothing.safetensors is corrupt, truncated",
    f"{DIGITS} --checkpoint pickled.pt": "s.save_file(",
    f"{DIGITS} --checkpoint pickled.bin": "pickled.bin is a pickled checkpoint",
    f"{DIGITS} --checkpoint nan.safetensors": "NaN or Inf in 1 tensor (head.bias)",
    f"{DIGITS} --checkpoint alien.safetensors": "cls_token",
    f"{MINE} --checkpoint alien.safetensors": "1 tensor (stem.weight) unexpected",
}
MODELS = {
    "eval plainword --data data.npz": "'plainword' names no model; write timm:NAME",
    "eval empty --data data.npz": "'empty' names no model",
    "eval mine:nothing --data data.npz": "no 'nothing'",
    "eval mine:mak --data data.npz": "it has make",
    "eval mine:not_a_model --data data.npz": "must return a torch.nn.Module",
    "eval mine:fails --data data.npz": "RuntimeError: boom",
    "eval mine:branching --data data.npz": "could not capture",
    "eval absent_module:make --data data.npz": "absent_module",
    "eval timm:vit_smal_patch16_224 --data images": "did you mean vit_small_patch16_224",
    "eval hf:no/such/model --data images": "no folder no/such/model",
    "eval hf:no-one/none --data images": "--pretrained",
    f"{TINY} --option nonsense=3": "nonsense",
    f"{MINE} --option nonsense=3": "nonsense",
    f"{MINE} --pretrained": "loads its own weights",
    f"{DIGITS} --option depth=3": "takes no options",
    f"{DIGITS} --option depth": "KEY=VALUE",
    f"{DIGITS} --model mine:make": "digits is a model itself",
    "inspect mine:make --input-shape 3,8,8": "[2, 3, 8, 8]",
    "inspect mine:make --input-shape a": "numbers separated by commas",
    "inspect mine:make --input-shape 1,6,6 --batch-dim 5": "--batch-dim 5",
    "layers data --data data.npz": "wrote, or fetch it in Python: transpike.load('data', download=True)",
    "literal data --data data.npz": "data is not a folder",
}
VALUES = {
    f"{DIGITS} --steps 0": "--steps must be at least 1, not 0",
    f"{DIGITS} --steps -1": "--steps must be at least 1, not -1",
    f"{DIGITS} --steps x": "'--steps'",
    "demo --steps 0": "--steps must be at least 1",
    f"{DIGITS} --recipe ecmt --levels 0": "levels must be a whole number",
    f"{DIGITS} --recipe ecmt --percentile 0": "percentile must be in (0, 1]",
    f"{DIGITS} --recipe ecmt --percentile 1.5": "percentile must be in (0, 1]",
    f"{DIGITS} --recipe ecmt --percentile -1": "percentile must be in (0, 1]",
    f"{DIGITS} --recipe ecmt --percentile nan": "percentile must be in (0, 1]",
    f"{DIGITS} --mode sideways": "--mode must be one of auto, folded, streaming",
    f"{DIGITS} --device gpu": "--device 'gpu' is not to be had here",
    f"{DIGITS} --steps 99999999999999999999": "--steps must be at most 65,536",
    "compare digits --data digits --steps 1,70000": "--steps must be at most 65,536, not 70000",
    f"{DIGITS} --json same --journal same": "--journal and --json name the same file, 'same'",
    f"{DIGITS} --json out/report.json --report out": "--json and --report name the same file",
    "tune digits --data digits --out same --journal ./same": "--out and --journal name the same file",
    f"{DIGITS} --json /dev/null": "cannot write --json '/dev/null': it is no regular file",
    f"{DIGITS} --max-memory {'9' * 400}GB": "a size of memory is a number with MB or GB",
    f"{DIGITS} --device meta": "--device 'meta' is not to be had here (it holds no numbers)",
    f"{DIGITS} --device cuda:99": "--device 'cuda:99' is not to be had here",
    f"{DIGITS} --device cpu --device-map cpu": "--device and --device-map both say where weights are",
    "convert digits --calibration digits --out x --device gpu": "--device 'gpu' is not to be had here",
    "tune digits --data digits --out x.json --device gpu": "--device 'gpu' is not to be had here",
    "compare digits --data digits --device gpu": "--device 'gpu' is not to be had here",
    f"{DIGITS} --precision float16": "--precision must be one of float32, bfloat16, bfloat16x3",
    f"{DIGITS} --recipe ecmd": "did you mean ecmt",
    f"{DIGITS} --recipe absent.json": "cannot read absent.json",
    f"{DIGITS} --recipe list.json": "list.json",
    f"{DIGITS} --recipe ecmt --set nonsense=1": "recipe ecmt has no option 'nonsense'; its options: levels",
    f"{DIGITS} --recipe ecmt --set symetric=true": "did you mean symmetric?",
    f"{DIGITS} --recipe ecmt --set symmetric=maybe": "symmetric takes true or false, not 'maybe'",
    f"{DIGITS} --recipe ecmt --set analog=7": "analog takes a list of texts, not 7",
    f"{DIGITS} --recipe ecmt --set levels=true": "levels takes a whole number, not True",
    f"{DIGITS} --recipe ecmt-code --set fc2=[1]": "fc2 takes a list of 2 numbers or null, not [1]",
    f"{DIGITS} --analog block.*": "analog pattern 'block.*' matches the module of no layer",
    f"{DIGITS} --analog blocks.0.* --analog heed": "analog pattern 'heed' matches the module of no layer; did you",
    "inspect digits --analog heed": "analog pattern 'heed' matches the module of no layer",
    "convert digits --calibration digits --out x --analog heed": "analog pattern 'heed'",
    f"{DIGITS} --first-layer red": "first_layer must be one of",
    f"{DIGITS} --batch-size 0": "batch_size 0",
    f"{DIGITS} --limit 0": "at least 1",
    f"{DIGITS} --samples 0": "cannot take 0 of the 500 samples",
    f"{DIGITS} --every 0": "every=0",
    f"{DIGITS} --every 1": "leaves 0 of the 500 samples",
    f"{DIGITS} --limit 5 --seed {2**70}": "does not fit 64 bits",
    f"{DIGITS} --limit 5 --batch-dim 3": "in batches of shape [1, 8, 8, 2]",
    f"{DIGITS} --limit 5 --batch-dim 4": "--batch-dim 4 is no dimension of inputs of shape [2, 1, 8, 8]",
    f"{DIGITS} --nonsense": "no such option: --nonsense",
    f"{DIGITS} --split val": "splits train and test",
    "convert digits --calibration digits --out x --samples 0": "at least 1",
    "convert digits --calibration digits": "missing option '--out'",
    "frobnicate": "frobnicate",
    f"{TINY} --mean a,b": "numbers separated by commas",
    f"{TINY} --mean nan,0,0": "numbers separated by commas",
    f"{TINY} --mean 0.5,0.5": "one per channel",
    f"{TINY} --std 0,0,0": "std (0.0, 0.0, 0.0) must be positive",
    f"{TINY} --input-size 32": "three sizes",
    f"{TINY} --input-size 3,48,48": "[4, 3, 48, 48]",
    f"{TINY} --crop-pct 0": "crop_pct",
    f"{TINY} --interpolation cubist": "interpolation 'cubist'",
    f"{TINY} --labels prefix": "class index",
    "eval mine:make --data wide.npz --mean 0.5": "--mean would change nothing about wide.npz",
    f"{DIGITS} --interpolation nearest --crop-pct 1": "--crop-pct, --interpolation would change nothing about digits",
    f"{DIGITS} --labels prefix": "--labels would change nothing about digits",
    f"{MINE} --labels nonsense": "--labels would change nothing about data.npz",
    f"{MINE} --split val": "--split would change nothing about data.npz",
    "eval mine:make --data data.npz --max-length 4": "--max-length would change nothing about data.npz",
    "compare mine:make --data images --split test": "--split would change nothing about images",
    "compare mine:make --data images.tar --split test": "--split would change nothing about images.tar",
    "convert mine:make --calibration images --out x --max-length 4": "--max-length would change nothing about images",
    "tune digits --data digits --out best": "name --out best.json",
    "convert digits --calibration digits --out x --every 0": "every=0",
    "tune mine:make --data data.npz --split val": "--split would change nothing about data.npz",
    "eval torch.nn:Identity --data images --crop-pct 0.9": "add --input-size C,H,W",
}
DATA = {
    "eval mine:make --data nowhere.npz": "nowhere.npz does not exist",
    "eval mine:make --data nowhere": "nowhere does not exist",
    "eval mine:make --data empty": "empty holds no image",
    "eval mine:make --data junk.npz": "junk.npz is not a complete .npz",
    "eval mine:make --data mine.py": "unknown format",
    "eval mine:make --data one.npz": "1 sample",
    "eval mine:make --data broken --calibration other.npz": "none of the 3 samples",
    "convert mine:make --calibration broken --out x": "none of the 3 samples",
    "eval mine:make --data far.npz": "label 3 but the model has 3 classes",
    "eval mine:make --data wide.npz": "in batches of shape [10, 1, 7, 7]",
    "eval mine:make --data wide.npz --calibration other.npz": "(16, 1, 7, 7)",
    "eval mine:make --data nan.npz --calibration other.npz": "nan.npz[0]: input holds NaN",
    f"{MINE.replace('other', 'nan')}": "nan.npz[0]: input holds NaN",
    "eval mine:make --data inf.npz": "NaN or infinity",
    "convert mine:words --calibration beyond.npz --batch-size 4 --out x": "sample 2 of the batch holds the id 9",
    "compare mine:words --data beyond.npz --calibration ids.npz --batch-size 8": "model's table has 7 rows (0..6)",
}
OUTPUTS = {
    f"{DIGITS} --json .": "--json '.': it is a folder",
    f"{DIGITS} --json data.npz/r.json": "data.npz is a file",
    f"{DIGITS} --report data.npz": "--report 'data.npz': it is a file",
    "inspect digits --json images": "--json 'images': it is a folder",
    "convert digits --calibration digits --out data.npz": "--out 'data.npz': it is a file",
    "convert digits --calibration digits --out data.npz/net": "data.npz is a file",
    "demo --out data.npz": "it is a file",
    "layers net --data data.npz --json images": "--json 'images': it is a folder",
    "layers net --data data.npz --report data.npz": "--report 'data.npz': it is a file",
    "layers net --data data.npz --report out --json out/layers.json": "--json and --report name the same file",
    "compare digits --data digits --report out --json out/comparison.json": "--json and --report name the same file",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    furnish(folder)
    checkpoints(folder)
    (folder / "list.json").write_text("{}")
    for name in ("a", "b", "c"):
        (folder / "broken" / name).mkdir(parents=True)
        (folder / "broken" / name / "0.png").write_bytes(b"x")
    return folder


@pytest.fixture
def place(scene: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(scene)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return scene


def tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one error that a command line gives."""
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    *others, last = err.splitlines()
    assert last.startswith("error: ") and not [text for text in others if text.startswith("error")], err
    assert "Traceback" not in err and "object at 0x" not in err
    if "branching" not in line:  # torch.export shows its graph
        assert not [text for text in others if not text.startswith(REMARKS)], err
    assert out == ""
    return last


@pytest.mark.parametrize("line", [*WEIGHTS, *MODELS, *VALUES, *DATA])
def test_one_sentence_and_exit_code_2(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "timm:" in line:
        pytest.importorskip("timm")
    before = tree(place)
    expected = {**WEIGHTS, **MODELS, **VALUES, **DATA}[line]
    assert expected in refusal(line, capsys)
    assert tree(place) == before


@pytest.mark.parametrize("line", OUTPUTS)
def test_what_cannot_be_written_is_said_before_the_work(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transpike.pipeline.ModelChoice.load", lambda self: pytest.fail("the work began"))
    before = tree(place)
    assert OUTPUTS[line] in refusal(line, capsys)
    assert tree(place) == before


def test_names_that_are_empty(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(place)
    assert main(["convert", "digits", "--calibration", "digits", "--out", ""]) == 2
    assert main(["eval", "digits", "--data", ""]) == 2
    assert main(["eval", "digits", "--data", "digits", "--json", ""]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    assert tree(place) == before


def test_a_saved_network_and_options_that_do_not_fit_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tmp_path / "net"
    assert main(f"convert mine:make --calibration other.npz --out {net} --quiet".split()) == 0
    assert capsys.readouterr().err == ""
    for more, expected in {
        "": "only its owner can build",
        " --model digits": "is not a checkpoint of this DigitsViT",
        " --model plainword": "names no model",
        " --model mine:make --levels 3 --recipe ecmt": "--recipe, --levels cannot change it",
        " --option depth=1": "--option cannot change it",
        " --model mine:make --data far.npz": "label 3",
        " --model mine:make --data wide.npz": "(16, 1, 7, 7)",
        " --model mine:make --data other.npz": "every sample of other.npz was used to calibrate",
    }.items():
        assert expected in refusal(f"eval {net} --data data.npz{more}", capsys)
    line = f"convert mine:words --calibration ids.npz --recipe ecmt --out {tmp_path / 'words'} --quiet"
    assert main(line.split()) == 0 and capsys.readouterr().out.endswith("words\n")
    for command in ("eval", "layers", "literal"):
        line = f"{command} {tmp_path / 'words'} --model mine:words --data beyond.npz --limit 8"
        assert "of sample 6 of the batch holds the id 9" in refusal(line, capsys)
    (net / "model.safetensors").write_bytes((net / "model.safetensors").read_bytes()[:-8])
    assert "model.safetensors" in refusal(f"eval {net} --data data.npz --model mine:make", capsys)


def test_out_of_memory(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def too_much(*inputs: object) -> None:
        raise MemoryError("Unable to allocate 745. GiB")

    for where in ("transpike.zoo.digits.DigitsViT.forward", "transpike.pipeline.ModelChoice.load"):
        monkeypatch.setattr(where, too_much)
        assert "error: out of memory (" in (said := refusal(f"{DIGITS} --limit 8", capsys))
        assert "745. GiB); lower --batch-size" in said


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk(place: Path, tmp_path: Path) -> None:
    """No file may grow beyond 2 kB: neither weights nor reports fit."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from transpike.cli import main\n"
        "print(main('convert digits --calibration digits --samples 8 --out net --quiet'.split()))\n"
        "print(main('eval digits --data digits --limit 8 --steps 1 --json r/report.json'.split()))\n"
        "print(main('eval digits --data digits --limit 8 --steps 1 --report r'.split()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["2", "2", "2"], done.stderr
    assert done.stderr.count("error: cannot write") == 3 and "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(place: Path) -> None:
    code = "import sys; from transpike.cli import main; sys.argv = ['transpike', '--version']; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=place)
    assert done.returncode == 2
    assert done.stderr == "error: cannot read or write the output: No space left on device\n"
