"""The embedded model and data are what they say they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from transpike.errors import ConfigError
from transpike.zoo import digits

SRC = Path(digits.__file__).resolve().parents[2]


def as_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float().unsqueeze(1) / 16


def test_held_out_accuracy_of_the_committed_weights() -> None:
    images, labels = digits.load_digits("test")
    with torch.no_grad():
        predicted = digits.load_model()(as_input(images)).argmax(1).numpy()
    assert (predicted == labels).mean() >= 0.96


def test_random_weights_do_not_reach_it() -> None:
    images, labels = digits.load_digits("test")
    torch.manual_seed(0)
    with torch.no_grad():
        predicted = digits.build().eval()(as_input(images)).argmax(1).numpy()
    assert (predicted == labels).mean() < 0.5


def test_files_stay_small() -> None:
    assert digits.DATA_FILE.stat().st_size <= 80_000
    assert digits.WEIGHTS_FILE.stat().st_size <= 500_000


def test_weights_are_finite_float32() -> None:
    for name, value in load_file(digits.WEIGHTS_FILE).items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name


def test_images_and_labels_equal_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="compares with scikit-learn's copy")
    bunch = datasets.load_digits()
    with np.load(digits.DATA_FILE, allow_pickle=False) as data:
        test = data["test_index"]
    train = np.setdiff1d(np.arange(len(bunch.target)), test)
    for split, index in (("train", train), ("test", test)):
        images, labels = digits.load_digits(split)
        np.testing.assert_array_equal(images, bunch.images[index])
        np.testing.assert_array_equal(labels, bunch.target[index])


def test_splits_are_disjoint_complete_and_stratified() -> None:
    (x_train, y_train), (x_test, y_test) = digits.load_digits("train"), digits.load_digits()
    assert x_train.shape == (1297, 8, 8)
    assert x_test.shape == (500, 8, 8)
    assert x_train.dtype == np.uint8
    assert y_test.dtype == np.int64
    assert max(x_train.max(), x_test.max()) == 16
    assert not {image.tobytes() for image in x_train} & {image.tobytes() for image in x_test}
    share = np.bincount(y_test) / (np.bincount(y_train) + np.bincount(y_test))
    np.testing.assert_allclose(share, 500 / 1797, atol=0.005)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="'validation'.*train, test"):
        digits.load_digits("validation")


def test_model_describes_its_input() -> None:
    model = digits.load_model()
    cfg = model.pretrained_cfg
    assert not model.training
    assert digits.build().training
    assert model(torch.zeros(2, *cfg["input_size"])).shape == (2, cfg["num_classes"])
    assert cfg["classes"] == tuple(str(digit) for digit in range(10))


def test_timm_loads_the_same_weights_and_agrees() -> None:
    vit = pytest.importorskip("timm.models.vision_transformer", reason="timm is the independent implementation")
    size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 48, "depth": 4, "num_heads": 4, "mlp_ratio": 2}
    other = vit.VisionTransformer(num_classes=10, **size).eval()
    other.load_state_dict(load_file(digits.WEIGHTS_FILE), strict=True)
    x = as_input(digits.load_digits("test")[0][:64])
    with torch.no_grad():
        torch.testing.assert_close(digits.load_model()(x), other(x), rtol=1e-4, atol=1e-4)


def test_needs_neither_timm_nor_scikit_learn() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(timm=None, sklearn=None)\n"
        "from transpike.zoo import digits\n"
        "digits.load_model(), digits.load_digits('train')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
