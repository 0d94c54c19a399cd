"""Data: layouts and labels, timm-equal preprocessing, refusals, honest splits, checked batches."""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transpike._parts import Part, calibrated_on, separate, without_calibration
from transpike.data import Preprocess, Samples, Subset, loader, open_data, split, take
from transpike.errors import ConfigError, DataError, InputError, MissingExtra

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
GRAY28 = Preprocess((1, 28, 28), (0.1307,), (0.3081,), "bicubic", 1.0)


def shared(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"shared/data/{path} is not beside this checkout")
    return SHARED / path


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth noise: neither so flat that resizing is trivial nor so wild that it means nothing."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(seed: int, *, height: int = 6, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    photo(height, width, seed).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@dataclass(frozen=True)
class Listed:
    """Samples from a list; an exception in it is raised instead of returned."""

    rows: list
    name: str = "listed"
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, i: int):
        if isinstance(self.rows[i], Exception):
            raise self.rows[i]
        return self.rows[i]

    def item_name(self, i: int) -> str:
        return f"row{i}"

    def fingerprint(self) -> str:
        return "listed"

    def digests(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self))))


def numbered(count: int) -> Listed:
    return Listed([(torch.full((2,), float(i)), i) for i in range(count)])


# Preprocessing

CONFIGS = [
    {"crop_pct": 0.875, "interpolation": "bicubic"},
    {"crop_pct": 0.9, "interpolation": "bilinear"},
    {"crop_pct": 1.0, "interpolation": "bicubic"},
    {"crop_pct": 0.95, "interpolation": "bilinear", "crop_mode": "squash"},
    {"crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "squash"},
    {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "border"},
    {"crop_pct": 0.875, "interpolation": "bicubic", "input_size": (3, 64, 48)},
    {"crop_pct": 0.9, "interpolation": "lanczos", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
    {},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("size", [(75, 101), (131, 90), (64, 64), (33, 200), (40, 41)], ids=str)
def test_preprocess_equals_timm(config: dict, size: tuple[int, int]) -> None:
    timm_data = pytest.importorskip("timm.data")
    config = {"input_size": (3, 64, 64)} | config
    resolved = timm_data.resolve_data_config(pretrained_cfg=config)
    expected = timm_data.create_transform(**resolved, is_training=False)(photo(*size))
    for source in (config, resolved):
        ours = Preprocess.from_config(source)(photo(*size))
        assert ours.dtype == torch.float32 and ours.is_contiguous()
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_preprocess_reads_a_pretrained_cfg_of_timm() -> None:
    timm = pytest.importorskip("timm")
    cfg = timm.get_pretrained_cfg("deit_tiny_patch16_224").to_dict()
    assert Preprocess.from_config(cfg) == Preprocess(
        (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, "center"
    )


def test_arrays_and_images_of_the_same_pixels_agree() -> None:
    image = photo(40, 52)
    gray = image.convert("L")
    rgb64 = Preprocess((3, 32, 32), (0.5,) * 3, (0.25,) * 3, "bilinear", 0.875)
    untouched = Preprocess((3, 40, 52), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)
    for convert in (rgb64, untouched, Preprocess((1, 40, 52), (0.0,), (1.0,), "bilinear", 1.0)):
        for picture in (image, gray):
            assert torch.equal(convert(picture), convert(np.array(picture)))
    assert torch.equal(untouched(image), torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert torch.equal(untouched(np.array(gray)[:, :, None]), untouched(gray))


def test_no_input_size_keeps_the_size_and_converts_channels() -> None:
    keep = Preprocess(None, (0.5,), (0.5,), "bicubic", 0.875)
    assert keep(photo(13, 17)).shape == (1, 13, 17)
    assert Preprocess.from_config({"input_size": None})(photo(13, 17).convert("L")).shape == (3, 13, 17)


def test_preprocess_does_not_change_its_input() -> None:
    pixels = np.full((28, 28), 7, dtype=np.uint8)
    GRAY28(pixels)
    assert (pixels == 7).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"input_size": (0, 8, 8)}, "input_size"),
        ({"mean": (0.1, 0.2)}, "3 channels"),
        ({"std": (0.0,) * 3}, "positive"),
        ({"interpolation": "random"}, "bicubic"),
        ({"crop_mode": "middle"}, "squash"),
        ({"crop_pct": -1.0}, "crop_pct"),
    ],
)
def test_preprocess_refuses_nonsense(changed: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Preprocess.from_config(changed)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8, 7), np.uint8), Image.new("I;16", (8, 8))],
    ids=["float", "batch", "seven channels", "16 bit"],
)
def test_preprocess_refuses_images_it_would_spoil(image: np.ndarray | Image.Image) -> None:
    with pytest.raises(DataError):
        Preprocess.from_config({"input_size": (3, 8, 8)})(image)


# Folders and archives


def test_folder_with_classes_is_sorted_and_labelled(tmp_path: Path) -> None:
    files = {
        "b/2.png": png(1),
        "b/10.PNG": png(2),
        "a-b/1.png": png(3),
        "a/1.JPEG": png(4),
        "a/._1.png": b"",
        "a/n.txt": b"",
    }
    samples = open_data(write_tree(tmp_path / "pets", files))
    assert isinstance(samples, Samples)
    assert (samples.name, samples.classes) == ("pets", ("a", "a-b", "b"))
    assert [samples.item_name(i) for i in range(len(samples))] == ["a/1.JPEG", "a-b/1.png", "b/10.PNG", "b/2.png"]
    assert [samples.fetch(i)[1] for i in range(4)] == [0, 1, 2, 2]
    expected = torch.from_numpy(np.array(photo(6, 8, 1))).permute(2, 0, 1) / 255
    assert torch.equal(samples.fetch(3)[0], expected)


def test_flat_folder_takes_the_prefix_when_all_have_one(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"007_x.png": png(1), "123_y_9.webp": png(2)})
    samples = open_data(str(root), preprocess=Preprocess.from_config({"input_size": (3, 4, 4)}))
    assert samples.classes is None
    assert [samples.fetch(i)[1] for i in range(2)] == [7, 123]
    assert samples.fetch(0)[0].shape == (3, 4, 4)
    assert open_data(root, labels="none").fetch(0)[1] is None
    (root / "plain.png").write_bytes(png(3))
    assert [open_data(root).fetch(i)[1] for i in range(3)] == [None, None, None]
    with pytest.raises(DataError, match="plain.png"):
        open_data(root, labels="prefix")
    with pytest.raises(ConfigError, match="labels"):
        open_data(root, labels="suffix")


def test_train_and_test_subfolders_are_splits_not_classes(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train/cat/1.png": png(1), "train/dog/1.png": png(2), "test/dog/2.png": png(3)})
    (root / "test" / "dog" / "cat.txt").write_text("not an image")
    assert [open_data(root, split="train").item_name(i) for i in range(2)] == ["cat/1.png", "dog/1.png"]
    assert open_data(root).item_name(0) == "dog/2.png"
    with pytest.raises(DataError, match="test, train"):
        open_data(root, split="val")


def test_an_empty_class_folder_is_refused_for_it_would_shift_labels(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"a/1.png": png(1), "c/1.png": png(2)})
    (root / "b").mkdir()
    with pytest.raises(DataError, match=r"b holds no image"):
        open_data(root)


@pytest.mark.parametrize("top", ["", "top/"])
def test_tar_equals_the_folder_it_was_made_from(tmp_path: Path, top: str) -> None:
    files = {"cat/1.png": png(1), "cat/2.png": png(2), "dog/1.png": png(3), "dog/readme.txt": b"no"}
    folder = open_data(write_tree(tmp_path / "folder", files))
    archive = open_data(write_tar(tmp_path / "x.tar", {top + k: files[k] for k in reversed(files)}))
    assert archive.classes == ("cat", "dog") and len(archive) == 3
    assert archive.fingerprint() == folder.fingerprint()
    for i in range(3):
        assert archive.item_name(i) == folder.item_name(i) and archive.fetch(i)[1] == folder.fetch(i)[1]
        assert torch.equal(archive.fetch(i)[0], folder.fetch(i)[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.tar"]  # nothing was extracted


def test_flat_tar_under_one_top_folder_takes_the_prefix(tmp_path: Path) -> None:
    samples = open_data(write_tar(tmp_path / "x.tar", {"./imgs/003_a.png": png(1), "./imgs/001_b.png": png(2)}))
    assert [(samples.item_name(i), samples.fetch(i)[1]) for i in range(2)] == [("001_b.png", 1), ("003_a.png", 3)]


def test_fingerprint_sees_content_and_names_but_not_the_place(tmp_path: Path) -> None:
    one = open_data(write_tree(tmp_path / "one", {"a/1.png": png(1), "b/1.png": png(2)})).fingerprint()
    assert one == open_data(write_tree(tmp_path / "two", {"a/1.png": png(1), "b/1.png": png(2)})).fingerprint()
    assert one != open_data(write_tree(tmp_path / "three", {"a/1.png": png(1), "b/1.png": png(3)})).fingerprint()
    assert one != open_data(write_tree(tmp_path / "four", {"a/1.png": png(1), "b/2.png": png(2)})).fingerprint()
    assert len(one) == 64 and int(one, 16) >= 0


# Refusals of open_data


def test_open_data_says_what_is_wrong_with_a_path(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_tree(tmp_path / "texts", {"a/readme.txt": b"x"})
    write_tree(tmp_path / "deep", {"a/b/c/1.png": png(1), "d/1.png": png(2)})
    (tmp_path / "x.xyz").write_bytes(b"x")
    (tmp_path / "x.csv").write_text("text,label\n")
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    (tmp_path / "broken.tar").write_bytes(b"x" * 700)
    for name, words in {
        "missing": "does not exist",
        "empty": "holds no image",
        "texts": "holds no image",
        "deep": "different depths",
        "x.xyz": "unknown format",
        "x.csv": "datasets:",
        "x.tar.gz": "unpack",
        "broken.tar": "not a complete",
    }.items():
        with pytest.raises(DataError, match=words) as caught:
            open_data(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", {"a/1.png": png(1, height=60, width=60), "b/1.png": png(2, height=60, width=60)}
    )
    path.write_bytes(path.read_bytes()[:-12000])
    with pytest.raises(DataError, match="x.tar"):
        list(loader(open_data(path), batch_size=1, on_failure=lambda item, error: (_ for _ in ()).throw(error)))


# .npz


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_images_go_through_the_preprocessing(tmp_path: Path) -> None:
    x = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    samples = open_data(npz(tmp_path / "a.npz", x=x, y=np.array([2, 0, 1])), preprocess=GRAY28)
    inputs, label = samples.fetch(1)
    torch.testing.assert_close(inputs, (torch.from_numpy(x[1:2]) / 255 - 0.1307) / 0.3081)
    assert (len(samples), label, type(label), samples.item_name(1)) == (3, 0, int, "a.npz[1]")
    column = open_data(npz(tmp_path / "c.npz", x=x, y=np.array([[2], [0], [1]]))).fetch(0)[1]
    assert (column, type(column)) == (2, int)
    colour = open_data(npz(tmp_path / "b.npz", x=np.full((2, 5, 6, 3), 51, np.uint8)))
    inputs, label = colour.fetch(0)
    assert inputs.shape == (3, 5, 6) and label is None
    torch.testing.assert_close(inputs, torch.full((3, 5, 6), 0.2))


def test_npz_of_numbers_passes_as_it_is(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    assert torch.equal(open_data(npz(tmp_path / "f.npz", x=floats)).fetch(1)[0], torch.from_numpy(floats[1]))
    ids = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32)
    y = np.array([[-100, 2, 3], [1, -100, 0]])
    tokens, labels = open_data(npz(tmp_path / "i.npz", x=ids, y=y)).fetch(0)
    assert tokens.dtype == labels.dtype == torch.int64
    assert tokens.tolist() == [1, 2, 3] and labels.tolist() == [-100, 2, 3]
    assert open_data(npz(tmp_path / "u.npz", x=ids.astype(np.uint8))).fetch(0)[0].dtype == torch.int64


def test_npz_with_other_arrays_gives_named_inputs(tmp_path: Path) -> None:
    ids, mask = np.array([[1, 2], [3, 4]]), np.array([[True, False], [True, True]])
    samples = open_data(npz(tmp_path / "a.npz", x=ids, attention_mask=mask, y=np.array([0, 1])))
    inputs, label = samples.fetch(0)
    assert sorted(inputs) == ["attention_mask", "input_ids"] and label == 0
    assert inputs["attention_mask"].dtype == torch.bool and inputs["input_ids"].tolist() == [1, 2]
    floats = open_data(npz(tmp_path / "b.npz", x=ids.astype(np.float32), cond=ids)).fetch(0)[0]
    assert sorted(floats) == ["cond", "x"]
    batch = next(loader(samples, batch_size=2))
    assert batch.inputs["input_ids"].shape == (2, 2) and batch.labels.tolist() == [0, 1]


def test_npz_refusals(tmp_path: Path) -> None:
    x = np.zeros((3, 4), np.float32)
    cases = {
        "lengths": ({"x": x, "y": np.zeros(2, int)}, "y of .* has shape \\[2\\] but x has \\[3, 4\\]"),
        "extra": ({"x": x, "mask": np.zeros(4)}, "mask"),
        "no_x": ({"images": x, "y": np.zeros(3, int)}, "no array x .*images"),
        "empty": ({"x": x[:0]}, "no sample"),
        "float_y": ({"x": x, "y": np.zeros(3)}, "integers"),
        "strings": ({"x": np.array(["a", "b"])}, "not numbers"),
        "pickled": ({"x": np.array([{}, {}], dtype=object)}, "plain arrays"),
        "chw": ({"x": np.zeros((2, 3, 32, 32), np.uint8)}, r"\[N, H, W, C\]"),
        "both": ({"x": np.zeros((2, 3), int), "input_ids": np.zeros((2, 3), int)}, "same input"),
    }
    for name, (arrays, words) in cases.items():
        with pytest.raises(DataError, match=words):
            open_data(npz(tmp_path / f"{name}.npz", **arrays))


def test_a_damaged_npz_is_refused_at_any_length(tmp_path: Path) -> None:
    content = npz(tmp_path / "whole.npz", x=np.arange(400, dtype=np.float32).reshape(4, 100)).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for i, damaged in enumerate(
        [b"", b"PK", content[:100], content[: len(content) // 2], content[:-1], bytes(flipped)]
    ):
        path = tmp_path / f"damaged{i}.npz"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"damaged{i}.npz"):
            open_data(path)


# CIFAR


def cifar_batch(count: int, seed: int, key: str = "labels", classes: int = 10) -> dict:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, key: rng.integers(0, classes, count).tolist(), "filenames": ["x.png"] * count}


def as_python2(content: object) -> bytes:
    """What the authors' Python 2 wrote: byte strings, protocol 2, and numpy under its old name."""
    blob = pickle.dumps(content, protocol=2)
    assert b"_reconstruct" in blob or b"names" in blob
    return blob.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar10(root: Path) -> tuple[Path, dict[str, dict]]:
    batches = {f"data_batch_{i}": cifar_batch(2, i) for i in range(1, 6)} | {"test_batch": cifar_batch(3, 9)}
    meta = {"label_names": [f"class{i}" for i in range(10)], "num_vis": 3072}
    files = {name: as_python2(batch) for name, batch in batches.items()} | {"batches.meta": as_python2(meta)}
    return write_tree(root / "cifar-10-batches-py", files), batches


def test_cifar10_python_layout(tmp_path: Path) -> None:
    folder, batches = write_cifar10(tmp_path)
    for path in (folder, tmp_path):
        test = open_data(path)
        assert len(test) == 3 and test.classes[9] == "class9"
        inputs, label = test.fetch(2)
        assert label == batches["test_batch"]["labels"][2]
        assert torch.equal(inputs, torch.from_numpy(batches["test_batch"]["data"][2].reshape(3, 32, 32)) / 255)
    train = open_data(folder, split="train")
    assert [train.fetch(i)[1] for i in range(10)] == sum(
        (batches[f"data_batch_{i}"]["labels"] for i in range(1, 6)), []
    )
    with pytest.raises(DataError, match="train and test"):
        open_data(folder, split="val")
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        open_data(folder, split="train")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_cifar100_python_layout_in_any_protocol(tmp_path: Path, protocol: int) -> None:
    batch = cifar_batch(4, 0, "fine_labels", 100)
    meta = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": ["c"] * 20}
    files = {"test": batch, "train": batch, "meta": meta}
    write_tree(tmp_path / "cifar-100-python", {k: pickle.dumps(v, protocol=protocol) for k, v in files.items()})
    samples = open_data(tmp_path)
    assert samples.classes[42] == "fine42"
    assert [samples.fetch(i)[1] for i in range(4)] == batch["fine_labels"]


def test_cifar10_binary_layout_holds_the_same_samples(tmp_path: Path) -> None:
    folder, batches = write_cifar10(tmp_path / "py")
    files = {"batches.meta.txt": b"\n".join(b"class%d" % i for i in range(10)) + b"\n\n"}
    for name, batch in batches.items():
        labels = np.array(batch["labels"], np.uint8)[:, None]
        files[f"{name}.bin"] = np.hstack([labels, batch["data"]]).tobytes()
    binary = open_data(write_tree(tmp_path / "bin" / "cifar-10-batches-bin", files), split="train")
    python = open_data(folder, split="train")
    assert binary.classes == python.classes and binary.fingerprint() == python.fingerprint()
    (tmp_path / "bin" / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="3073"):
        open_data(tmp_path / "bin")


class Malicious:
    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    folder, _ = write_cifar10(tmp_path)
    trace = tmp_path / "ran"
    attacks = {
        "system": (os.system, (f"touch {trace}",)),
        "eval": (eval, (f"open({str(trace)!r}, 'w')",)),
        "getattr": (getattr, ("text", "upper")),
        "load": (np.load, (str(trace),)),
        "popen": (subprocess.Popen, (["touch", str(trace)],)),
    }
    for call in attacks.values():
        bomb = {"data": Malicious(call), "labels": [0]}
        content = pickle.dumps(bomb, protocol=protocol)
        assert "REDUCE" in {opcode.name for opcode, _, _ in pickletools.genops(content)}  # it does ask for the call
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match="do not trust"):
            open_data(folder)
        assert not trace.exists()


def test_stand_ins_do_not_lend_their_attributes(tmp_path: Path) -> None:
    folder, _ = write_cifar10(tmp_path)
    dotted = b"\x80\x04\x8c\x05numpy\x94\x8c\x11ndarray.__class__\x94\x93\x94."
    for content in (
        dotted,
        b"",
        b"\x80\x02}",
        b"garbage",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": 1, "labels": [0]}),
    ):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match="test_batch"):
            open_data(folder)


def test_cifar_with_other_shapes_or_types_is_refused(tmp_path: Path) -> None:
    folder, _ = write_cifar10(tmp_path)
    good = cifar_batch(2, 0)
    for change in (
        {"labels": [1]},
        {"labels": ["a", "b"]},
        {"data": good["data"].astype(np.float64)},
        {"data": good["data"][:, :9]},
    ):
        (folder / "test_batch").write_bytes(pickle.dumps(good | change, protocol=2))
        with pytest.raises(DataError, match="test_batch"):
            open_data(folder)


# Hugging Face datasets


class Letters:
    """A tokenizer of letters with the call signature of Hugging Face's."""

    pad_token = "_"

    def __call__(self, *texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        ids = [ord(c) for c in "|".join(texts)][:max_length]
        row = ids + [0] * (max_length - len(ids))
        mask = [1] * len(ids) + [0] * (max_length - len(ids))
        return {"input_ids": torch.tensor([row]), "attention_mask": torch.tensor([mask])}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_datasets_reads_a_local_file_of_text(tmp_path: Path, hub, kind: str) -> None:
    table = hub.Dataset.from_dict({"sentence": ["ab", "c" * 200], "label": [1, 0], "idx": [5, 6]})
    getattr(table, f"to_{kind}")(str(tmp_path / f"x.{kind}"))
    spec = f"datasets:{tmp_path / f'x.{kind}'}"
    samples = open_data(spec, tokenizer=Letters())
    inputs, label = samples.fetch(0)
    assert label == 1 and inputs["input_ids"].shape == (128,) and inputs["input_ids"][:3].tolist() == [97, 98, 0]
    assert open_data(spec, tokenizer=Letters(), max_length=4).fetch(1)[0]["attention_mask"].tolist() == [1, 1, 1, 1]
    batch = next(loader(samples, batch_size=2))
    assert batch.inputs["input_ids"].shape == (2, 128) and batch.labels.tolist() == [1, 0]
    assert samples.fingerprint() == open_data(spec, tokenizer=Letters()).fingerprint()
    with pytest.raises(DataError, match="tokenizer"):
        open_data(spec)
    with pytest.raises(DataError, match="no splits"):
        open_data(f"{spec}:validation", tokenizer=Letters())


def test_datasets_takes_pairs_splits_and_class_names(tmp_path: Path, hub) -> None:
    features = hub.Features(
        sentence1=hub.Value("string"), sentence2=hub.Value("string"), label=hub.ClassLabel(names=["no", "yes"])
    )
    rows = {"sentence1": ["a", "b"], "sentence2": ["x", "y"], "label": [1, 0]}
    both = hub.DatasetDict(
        train=hub.Dataset.from_dict(rows, features=features),
        validation=hub.Dataset.from_dict({k: v[:1] for k, v in rows.items()}, features=features),
    )
    both.save_to_disk(str(tmp_path / "saved"))
    spec = f"datasets:{tmp_path / 'saved'}"
    samples = open_data(f"{spec}:train", tokenizer=Letters(), max_length=4)
    assert samples.classes == ("no", "yes") and len(samples) == 2
    assert samples.fetch(1)[0]["input_ids"].tolist() == [ord("b"), ord("|"), ord("y"), 0]
    assert len(open_data(spec, split="validation", tokenizer=Letters())) == 1
    with pytest.raises(DataError, match="train, validation"):
        open_data(spec, tokenizer=Letters())


def test_datasets_preprocesses_images(tmp_path: Path, hub) -> None:
    features = hub.Features(img=hub.Image(), fine_label=hub.Value("int64"))
    rows = {"img": [photo(12, 10, 1), photo(9, 30, 2)], "fine_label": [3, 4]}
    hub.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    convert = Preprocess.from_config({"input_size": (3, 8, 8)})
    samples = open_data(f"datasets:{tmp_path / 'x.parquet'}", preprocess=convert)
    inputs, label = samples.fetch(1)
    assert label == 4 and torch.equal(inputs, convert(photo(9, 30, 2)))
    rows["img"][1] = photo(9, 30, 3)
    hub.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "y.parquet"))
    assert open_data(f"datasets:{tmp_path / 'y.parquet'}").fingerprint() != samples.fingerprint()


def test_datasets_refusals(tmp_path: Path, hub) -> None:
    (tmp_path / "numbers.csv").write_text("a,b,label\n1,2,0\n")
    (tmp_path / "score.csv").write_text("text,label\nhello,0.5\n")
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "x.pkl").write_bytes(b"")
    for name, words in {"numbers.csv": "a, b, label", "empty.csv": "row|loaded", "x.pkl": "parquet"}.items():
        with pytest.raises(DataError, match=words):
            open_data(f"datasets:{tmp_path / name}", tokenizer=Letters())
    with pytest.raises(DataError, match=r"score.*0\.5"):
        open_data(f"datasets:{tmp_path / 'score.csv'}", tokenizer=Letters()).fetch(0)
    with pytest.raises(DataError, match="cannot be loaded"):
        open_data("datasets:no-such-owner/no-such-name")
    with pytest.raises(DataError, match="not understood"):
        open_data("datasets:a:b:c:d")


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path, hub) -> None:
    (tmp_path / "x.csv").write_text("text\nhello\n")
    tokenizer = Letters()
    tokenizer.pad_token = None
    with pytest.raises(DataError, match="pad_token"):
        open_data(f"datasets:{tmp_path / 'x.csv'}", tokenizer=tokenizer)


# Digits


def test_digits_are_sixteenths(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = type(sys)("transpike.zoo.digits")
    values = {"train": np.full((5, 8, 8), 16, np.uint8), "test": np.full((3, 8, 8), 4, np.uint8)}
    zoo.load_digits = lambda *, split: (values[split], np.arange(len(values[split])))
    monkeypatch.setitem(sys.modules, "transpike.zoo.digits", zoo)
    monkeypatch.setitem(sys.modules, "transpike.zoo", type(sys)("transpike.zoo"))
    inputs, label = open_data("digits").fetch(2)
    assert inputs.dtype == torch.float32 and torch.equal(inputs, torch.full((1, 8, 8), 0.25)) and label == 2
    assert len(open_data("digits", split="train")) == 5
    with pytest.raises(DataError, match="train and test"):
        open_data("digits", split="val")


def test_the_digits_of_the_package() -> None:
    pytest.importorskip("transpike.zoo.digits")
    train, test = open_data("digits", split="train"), open_data("digits")
    inputs, label = test.fetch(0)
    assert inputs.shape == (1, 8, 8) and float(inputs.min()) >= 0 and float(inputs.max()) <= 1 and 0 <= label <= 9
    assert len(train) > len(test) > 100 and train.fingerprint() != test.fingerprint()


# Splits


def test_split_is_disjoint_complete_seeded() -> None:
    samples = numbered(50)
    calibration, evaluation = split(samples, calibration=12, seed=3)
    assert len(calibration) == 12 and sorted(calibration.indices + evaluation.indices) == list(range(50))
    assert list(calibration.indices) == sorted(calibration.indices)
    assert split(samples, calibration=12, seed=3)[0].indices == calibration.indices
    assert split(samples, calibration=12, seed=4)[0].indices != calibration.indices
    assert evaluation.fetch(0)[1] == evaluation.indices[0] and evaluation.item_name(1) == f"row{evaluation.indices[1]}"


def test_split_every_fifth() -> None:
    calibration, evaluation = split(numbered(11), every=5)
    assert calibration.indices == (0, 5, 10) and evaluation.indices == (1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(calibration, Samples) and isinstance(calibration, Subset)
    assert calibration.parent_fingerprint == evaluation.parent_fingerprint == "listed"
    assert len({calibration.fingerprint(), evaluation.fingerprint(), "listed"}) == 3


@pytest.mark.parametrize("options", [{"calibration": 0}, {"calibration": 5}, {"calibration": 9}, {"every": 1}], ids=str)
def test_split_refuses_an_empty_side(options: dict) -> None:
    with pytest.raises(DataError):
        split(numbered(5), **options)


def test_split_needs_a_rule() -> None:
    with pytest.raises(ConfigError, match="calibration"):
        split(numbered(5))
    with pytest.raises(ConfigError, match="stride"):
        split(numbered(5), every=0)


def test_take_is_a_seeded_subset() -> None:
    samples = numbered(40)
    assert take(samples, 7).indices == take(samples, 7, seed=0).indices != take(samples, 7, seed=1).indices
    assert len(set(take(samples, 7).indices)) == 7
    assert take(samples, 99).indices == tuple(range(40))
    with pytest.raises(DataError):
        take(samples, 0)


# Calibration and evaluation apart


def same_inputs(kind: str, place: Path) -> tuple[Path, Path]:
    """Twelve inputs, and the same ones under other names or without labels."""
    if kind == "arrays":
        x, mask = np.arange(12 * 5).reshape(12, 5), np.ones((12, 5), bool)
        np.savez(place / "bare.npz", x=x, attention_mask=mask)
        np.savez(place / "labelled.npz", x=x, attention_mask=mask, y=np.arange(12) % 3)
        return place / "bare.npz", place / "labelled.npz"
    files = {f"{name}/{i}.png": png(3 * i + k) for k, name in enumerate("abc") for i in range(4)}
    flat = {f"{name.replace('/', '_')}": content for name, content in files.items()}
    return write_tree(place / "flat", flat), write_tree(place / "classes", files)


@pytest.mark.parametrize("kind", ["arrays", "images"])
def test_the_same_inputs_otherwise_named_or_labelled_are_one_source(kind: str, tmp_path: Path) -> None:
    bare, labelled = (Part(open_data(path), path.name) for path in same_inputs(kind, tmp_path))
    assert bare.record()["fingerprint"] != labelled.record()["fingerprint"]
    few, rest, remark = separate(labelled, bare, count=5, every=None, seed=0)
    assert "5 random samples (seed 0) calibrate, the other 7 are evaluated" in remark
    assert sorted([*few.samples.indices, *rest.samples.indices]) == list(range(12))  # type: ignore[attr-defined]
    used = Part(take(bare.samples, 4), bare.spec).used()  # as a saved network has it
    kept, remark = without_calibration(labelled, used)
    assert remark == f"4 samples of {labelled.spec} calibrated this network and are left out"
    assert kept.record()["indices"] == [i for i in range(12) if i not in used["indices"]]
    known = calibrated_on(labelled.samples, used)
    assert known is not None and known.record()["indices"] == used["indices"]
    with pytest.raises(DataError, match="every sample of .* was used to calibrate this network"):
        without_calibration(labelled, bare.used())


def test_a_part_of_the_data_that_calibrates_is_left_out(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(9 * i + k) for k, name in enumerate("ab") for i in (1, 2)}
    whole = write_tree(tmp_path / "all", {**files, "b/0.png": png(70)})
    data, few = Part(open_data(whole), "all"), Part(open_data(whole / "a"), "all/a")
    found, rest, remark = separate(data, few, count=2, every=None, seed=0)
    assert len(found.samples) == 2 and remark == "2 samples of all calibrate and are left out"
    assert [rest.samples.item_name(i) for i in range(len(rest.samples))] == ["b/0.png", "b/1.png", "b/2.png"]
    with pytest.raises(DataError, match="every sample of all/a was used to calibrate"):
        separate(few, data, count=5, every=None, seed=0)
    other = Part(open_data(write_tree(tmp_path / "other", {"a/1.png": png(50), "b/1.png": png(51)})), "other")
    assert separate(data, other, count=9, every=None, seed=0)[1:] == (data, "")
    assert calibrated_on(data.samples, other.used()) is None
    before = {key: value for key, value in few.used().items() if key != "digests"}  # of a network saved without them
    assert without_calibration(data, before) == (data, "") and calibrated_on(data.samples, before) is None
    assert without_calibration(few, {**before, "indices": [0]})[0].record()["indices"] == [1]


# Batches


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_loader_gives_each_sample_once_in_order(batch_size: int) -> None:
    batches = list(loader(numbered(10), batch_size=batch_size))
    assert [i for batch in batches for i in batch.indices] == list(range(10))
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch.inputs for batch in batches])[:, 1].tolist() == list(range(10))
    assert {len(batch.indices) for batch in batches[:-1]} <= {batch_size}


def test_loader_reads_at_most_one_batch_ahead_and_stops_when_left() -> None:
    fetched = []

    @dataclass(frozen=True)
    class Watched(Listed):
        def fetch(self, i: int):
            fetched.append(i)
            return super().fetch(i)

    batches = loader(Watched(numbered(100).rows), batch_size=4)
    next(batches)
    batches.close()
    assert fetched[:4] == [0, 1, 2, 3] and len(fetched) <= 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("transpike-loader")]


def test_unreadable_samples_are_told_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = png(1, height=40, width=40)
    files = {"a/1.png": good, "a/2.png": good[:-200], "a/3.jpg": b"not an image", "a/4.png": b"", "b/1.png": good}
    samples = open_data(write_tree(tmp_path, files))
    told: list[tuple[str, Exception]] = []
    batches = list(loader(samples, batch_size=2, on_failure=lambda item, error: told.append((item, error))))
    assert [item for item, _ in told] == ["a/2.png", "a/3.jpg", "a/4.png"]
    assert all(isinstance(error, DataError) for _, error in told)
    assert [batch.indices for batch in batches] == [(0, 4)] and batches[0].labels.tolist() == [0, 1]
    with caplog.at_level(logging.WARNING, logger="transpike.data"):
        assert [batch.indices for batch in loader(samples, batch_size=9)] == [(0, 4)]
    assert "a/2.png" in caplog.text


def test_all_unreadable_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 2 samples.*broken one"):
        list(loader(Listed([OSError("broken one"), OSError("other")]), batch_size=1, on_failure=lambda *_: None))
    with pytest.raises(DataError, match="no sample"):
        loader(Listed([]), batch_size=1)


def test_an_error_of_the_caller_is_not_swallowed() -> None:
    def stop(item: str, error: Exception) -> None:
        raise KeyboardInterrupt(item)

    with pytest.raises(KeyboardInterrupt):
        list(loader(Listed([OSError("x"), (torch.zeros(1), 0)]), batch_size=1, on_failure=stop))


@pytest.mark.parametrize(
    "error", [MissingExtra("pillow", "vision", "reading images"), ConfigError("bad setting"), MemoryError()]
)
def test_a_missing_package_is_not_a_broken_sample(error: Exception) -> None:
    told: list[str] = []
    with pytest.raises(type(error)):
        list(loader(Listed([error, (torch.zeros(1), 0)]), batch_size=1, on_failure=lambda item, _: told.append(item)))
    assert told == []


def test_running_out_of_memory_is_not_a_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image) -> None:
        raise MemoryError

    samples = open_data(write_tree(tmp_path / "images", {"a.png": png(1), "b.png": png(2)}))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", full)
    with pytest.raises(MemoryError):
        list(loader(samples, batch_size=1))


@pytest.mark.parametrize("label", [10, -1, torch.tensor([0, -100, 10])], ids=["too large", "negative", "per token"])
def test_labels_outside_the_classes_are_refused(label: int | torch.Tensor) -> None:
    samples = Listed([(torch.zeros(2), 3), (torch.zeros(2), label)])
    with pytest.raises(DataError, match=r"row1 has label (10|-1) .*10 classes"):
        list(loader(samples, batch_size=1, num_classes=10))
    assert len(list(loader(samples, batch_size=1))) == 2


def test_the_ignored_label_is_allowed() -> None:
    samples = Listed([(torch.zeros(2), torch.tensor([-100, 1])), (torch.zeros(2), torch.tensor([0, -100]))])
    assert next(loader(samples, batch_size=2, num_classes=2)).labels.tolist() == [[-100, 1], [0, -100]]


def test_differing_shapes_in_a_batch_name_both_items() -> None:
    samples = Listed([(torch.zeros(3, 4), 0), (torch.zeros(3, 4), 0), (torch.zeros(3, 5), 0)])
    with pytest.raises(DataError, match=r"row0 has shape \[3, 4\].*row2 has \[3, 5\]"):
        list(loader(samples, batch_size=3))
    named = Listed([({"a": torch.zeros(2)}, None), ({"b": torch.zeros(2)}, None)])
    with pytest.raises(DataError, match="row0.*row1"):
        list(loader(named, batch_size=2))
    half = Listed([(torch.zeros(2), 0), (torch.zeros(2), None)])
    with pytest.raises(DataError, match="only one of row0 and row1"):
        list(loader(half, batch_size=2))


def test_nan_is_refused_by_name() -> None:
    samples = Listed([(torch.zeros(2), 0), ({"mask": torch.tensor([0.0, float("nan")])}, 0)])
    with pytest.raises(DataError, match="row1.*mask.*NaN"):
        list(loader(samples, batch_size=1))


def test_unlabelled_samples_give_no_labels() -> None:
    assert next(loader(Listed([(torch.zeros(2), None)] * 3), batch_size=3)).labels is None


def test_bad_batch_size_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        loader(numbered(3), batch_size=0)


def test_importing_data_imports_no_optional_package() -> None:
    code = (
        "import sys, transpike.data; "
        "print(sorted({'PIL', 'timm', 'torchvision', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert out.stdout.strip() == "[]", out.stderr


def test_every_refusal_is_an_input_error() -> None:
    with pytest.raises(InputError):
        open_data("no/such/place")


# Real data


@pytest.mark.shared
def test_shared_imagenet_sample() -> None:
    pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config

    root = shared("imagenet-sample-224")
    config = {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic"}
    samples = open_data(root, preprocess=Preprocess.from_config(config))
    labels = [int(samples.item_name(i).split("_")[0]) for i in range(len(samples))]
    assert len(samples) == 500 and labels == sorted(set(labels))
    reference = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    for i in range(0, 500, 100):
        inputs, label = samples.fetch(i)
        assert label == labels[i]
        expected = reference(Image.open(root / samples.item_name(i)).convert("RGB"))
        torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-6)
    calibration, evaluation = split(samples, every=5)
    assert (len(calibration), len(evaluation)) == (100, 400)


@pytest.mark.shared
def test_shared_cifar_tar() -> None:
    samples = open_data(shared("cifar10/cifar10_test_jpg.tar"))
    assert len(samples) == 10_000 and len(samples.classes) == 10 and samples.classes[2] == "bird"
    batch = next(loader(take(samples, 32), batch_size=32, num_classes=10))
    assert batch.inputs.shape == (32, 3, 32, 32) and len(set(batch.labels.tolist())) > 5


@pytest.mark.shared
def test_shared_mnist() -> None:
    samples = open_data(shared("mnist/mnist_test.npz"), preprocess=GRAY28)
    assert len(samples) == 10_000
    batch = next(loader(samples, batch_size=100, num_classes=10))
    assert batch.inputs.shape == (100, 1, 28, 28)
    torch.testing.assert_close(batch.inputs.min(), torch.tensor(-0.1307 / 0.3081))
