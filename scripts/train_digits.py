"""Train the embedded digits model: writes `digits.npz` and `digits_vit.safetensors` beside `zoo/digits.py`.

    python scripts/train_digits.py           train, write both files, print the held-out accuracy
    python scripts/train_digits.py --check   train again, write nothing, compare with the committed weights

One thread, fixed seed, deterministic algorithms: repeating it on the same machine with the same torch gives the same
bits. Another CPU or another torch may round differently and end in slightly different weights of the same accuracy.
The committed weights were trained with torch 2.14.1 on an x86-64 CPU: 97.6 % of the 500 held-out images right.
Needs scikit-learn: `pip install 'transpike[test]'`.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from transpike.zoo import digits

SEED = 0
NUM_TEST = 500
NUM_EPOCHS = 100
BATCH = 64


def dataset() -> dict[str, np.ndarray]:
    """All images, their labels and the sorted indices of the held-out ones, stratified by label."""
    bunch = sklearn_digits()
    labels = bunch.target.astype(np.uint8)
    _, test = train_test_split(np.arange(len(labels)), test_size=NUM_TEST, stratify=labels, random_state=SEED)
    return {"x": bunch.images.astype(np.uint8), "y": labels, "test_index": np.sort(test).astype(np.uint16)}


def split(data: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_train [1297, 1, 8, 8], y_train, x_test, y_test as the model reads them."""
    held_out = np.zeros(len(data["y"]), dtype=bool)
    held_out[data["test_index"]] = True
    x = torch.from_numpy(data["x"]).float().unsqueeze(1) / 16
    y = torch.from_numpy(data["y"]).long()
    test = torch.from_numpy(held_out)
    return x[~test], y[~test], x[test], y[test]


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along each axis, blank pixels coming in."""
    offset = torch.randint(0, 3, (2, len(x), 1), generator=generator) + torch.arange(8)
    rows, columns = offset[0].unsqueeze(2), offset[1].unsqueeze(1)
    return F.pad(x, (1, 1, 1, 1))[torch.arange(len(x)).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


@torch.no_grad()
def accuracy(model: digits.DigitsViT, x: Tensor, y: Tensor) -> float:
    """Share of images whose largest logit is the label."""
    return (model.eval()(x).argmax(1) == y).double().mean().item()


def train(x: Tensor, y: Tensor) -> digits.DigitsViT:
    """AdamW, one-cycle learning rate, random one-pixel shifts, a fixed number of epochs; never sees held-out images."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = digits.build().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=NUM_EPOCHS * steps, pct_start=0.1)
    for _ in range(NUM_EPOCHS):
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(shifted(x[index], generator)), y[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return model.eval()


def write(path: Path, content: bytes) -> None:
    """Replace `path` in one go, so that a reader never sees half a file."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check(model: digits.DigitsViT, x: Tensor, y: Tensor) -> None:
    """Print how far the model just trained is from the committed one."""
    committed = load_file(digits.WEIGHTS_FILE)
    difference = max((value - committed[name]).abs().max().item() for name, value in model.state_dict().items())
    print(f"largest difference to the committed weights: {difference:.3g}")
    retrained, before = accuracy(model, x, y), accuracy(digits.load_model(), x, y)
    print(f"held-out accuracy: retrained {retrained:.4f}, committed {before:.4f}")


def main() -> None:
    """Train, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed weights instead of writing")
    only_check: bool = parser.parse_args().check
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = dataset()
    x_train, y_train, x_test, y_test = split(data)
    start = time.perf_counter()
    model = train(x_train, y_train)
    print(f"trained in {time.perf_counter() - start:.0f} s with torch {torch.__version__}")
    if only_check:
        check(model, x_test, y_test)
        return
    archive = io.BytesIO()
    np.savez_compressed(archive, x=data["x"], y=data["y"], test_index=data["test_index"])
    write(digits.DATA_FILE, archive.getvalue())
    write(digits.WEIGHTS_FILE, save(model.state_dict()))
    print(f"accuracy: train {accuracy(model, x_train, y_train):.4f}, held out {accuracy(model, x_test, y_test):.4f}")


if __name__ == "__main__":
    main()
