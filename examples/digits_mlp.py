"""A multilayer perceptron with batch normalisation for the embedded digits, trained in seconds: every operator has its
place in NIR.

    cd examples && python digits_mlp.py digits_mlp.safetensors
    transpike convert digits_mlp:digits_mlp --checkpoint digits_mlp.safetensors --calibration digits --out mlp
    transpike export nir mlp --model digits_mlp:digits_mlp --out mlp.nir --data digits --limit 500 --steps 8
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transpike.zoo.digits import load_digits

EPOCHS, BATCH, RATE = 40, 64, 3e-3


class DigitsMLP(nn.Sequential):
    """[B, 1, 8, 8] in 0..1 -> [B, 10]."""

    pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "num_classes": 10}

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            *(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU()),
            nn.Linear(64, 10),
        )


def digits_mlp() -> DigitsMLP:
    return DigitsMLP().eval()


def digits(split: str) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(split)
    return torch.from_numpy(images).float().unsqueeze(1) / 16, torch.from_numpy(labels).long()


def trained() -> DigitsMLP:
    """Fixed seed: the same weights again on the same machine and versions."""
    torch.manual_seed(0)
    model, (images, labels) = DigitsMLP().train(), digits("train")
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimiser.step()
    return model.eval()


def main() -> None:
    model, (images, labels) = trained(), digits("test")
    right = (model(images).argmax(1) == labels).float().mean()
    save_file(model.state_dict(), sys.argv[1])
    print(f"wrote {sys.argv[1]}: {100 * right:.1f} % of {len(labels)} held-out images right")


if __name__ == "__main__":
    main()
