"""Train a small CNN with the QCFS activation and run it as a spiking network at T = 1..32 steps.

    python train_qcfs.py S/cifar10/cifar10_test_jpg.tar OUT

writes OUT/qcfs.safetensors (weights and thresholds) and OUT/snn (the converted network), and prints accuracies. DATA is
anything `transpike eval` reads that holds 3 x 32 x 32 images. Every fifth image is held out, the others train: of
CIFAR-10 only the 10,000 test images need to be there. See docs/qcfs.md.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import transpike
from transpike import Recipe, SiteChoice, Threshold
from transpike.data import loader, open_data
from transpike.data.preprocess import Preprocess
from transpike.recipes import CORRECTIONS, parallel, recipe_named

STEPS = (1, 2, 4, 8, 16, 32)
BATCH, RATE, DECAY, FIRST_THRESHOLD = 64, 0.1, 5e-4, 2.0
Split = tuple[Tensor, Tensor]


class Floor(torch.autograd.Function):
    """Floor whose gradient is passed straight through."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class QCFS(nn.Module):
    """a(z) = lambda clip(floor(z L / lambda + 1/2) / L, 0, 1), lambda trained; with L = 0 the ReLU it stands for.

    By the straight-through floor da/dz is 1 for 0 < z < lambda, else 0; da/dlambda is (a - z) / lambda for these z, 1
    above and 0 below. Source: Bu et al., ICLR 2022, arXiv 2303.04347.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(FIRST_THRESHOLD))

    def forward(self, z: Tensor) -> Tensor:
        if not self.levels:
            return z.relu()
        level = Floor.apply((z / self.threshold).clamp(0, 1) * self.levels + 0.5)  # clipped first: the same values
        return self.threshold * level / self.levels


class SmallCNN(nn.Sequential):
    """[B, 3, 32, 32] -> [B, 10]. Pooling stands before the activation, so that layers read activations, and neurons,
    which transpike puts before layers, stand where the activations were."""

    pretrained_cfg = {
        "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "num_classes": 10, "crop_pct": 1.0,
        "interpolation": "bilinear",
    }  # fmt: skip

    def __init__(self, levels: int, widths: tuple[int, ...] = (16, 32, 32, 64, 64)) -> None:
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [*([] if i % 2 else [nn.AvgPool2d(2)]), QCFS(levels)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], 10))

    def with_levels(self, levels: int) -> SmallCNN:
        """The same weights with another number of levels, for evaluation."""
        other = copy.deepcopy(self)
        for layer in other:
            if isinstance(layer, QCFS):
                layer.levels = levels
        return other.eval()


def relu_cnn() -> SmallCNN:
    """The network that is converted: it loads the same file, and leaves the thresholds to the neurons."""
    return SmallCNN(levels=0).eval()


def read(spec: str) -> tuple[Split, Split]:
    """(images, labels) to train with, and those of every fifth index, held out."""
    cfg = {key: value for key, value in SmallCNN.pretrained_cfg.items() if key != "num_classes"}
    batches = list(loader(open_data(spec, preprocess=Preprocess(**cfg)), batch_size=500))  # type: ignore[arg-type]
    images, labels = (torch.cat([getattr(batch, part) for batch in batches]) for part in ("inputs", "labels"))
    held_out = torch.arange(len(labels)) % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def augmented(images: Tensor) -> Tensor:
    """Each image flipped or not, and shifted by up to 4 pixels."""
    size, padded = images.shape[-1], nn.functional.pad(images, (4,) * 4)
    shift = torch.randint(0, 9, (2, len(images), 1)) + torch.arange(size)
    columns = torch.where(torch.rand(len(images), 1) < 0.5, shift[1], shift[1].flip(1))
    return padded[torch.arange(len(images))[:, None, None], :, shift[0][:, :, None], columns[:, None]].movedim(3, 1)


def train(model: SmallCNN, split: Split, epochs: int) -> Iterator[float]:
    """SGD with momentum under a cosine; yields the mean loss of each epoch. Fixed seed."""
    torch.manual_seed(0)
    images, labels = split
    model.to(memory_format=torch.channels_last)  # more than twice as fast on a CPU
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-len(labels) // BATCH))
    for _ in range(epochs):
        model.train()
        losses = []
        for part in torch.randperm(len(labels)).split(BATCH):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(augmented(images[part])), labels[part])
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        model.eval()
        yield sum(losses) / len(losses)
    model.to(memory_format=torch.contiguous_format)


def spiking(model: SmallCNN, recipe: Recipe, samples: Tensor) -> transpike.SpikingModel:
    """The ReLU network with a neuron behind every ReLU, whose threshold is the trained lambda of that place. `samples`
    only serve corrections, where the recipe has one."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    trained = [Threshold(layer.threshold.item(), 0.0) for layer in model if isinstance(layer, QCFS)]
    choices = {f"{name}:input": SiteChoice(threshold=theta) for name, theta in zip(layers[1:], trained, strict=True)}
    return transpike.convert(model.with_levels(0), samples.split(64), replace(recipe, patterns=choices))


@torch.no_grad()
def accuracies(model: SmallCNN, samples: Tensor, split: Split) -> dict[str, list[float]]:
    """Percent right by T: integrate-and-fire step by step; the activation with L = T; parallel neurons with a window of
    T, as they are and corrected by channel on `samples`."""
    images, labels = split
    snn = spiking(model, recipe_named("qcfs"), samples)
    runs = torch.cat([snn.simulate(part, STEPS[-1], count=False).outputs for part in images.split(25)], 1)
    outputs = {"qcfs": runs[[t - 1 for t in STEPS]]}
    outputs["activation"] = torch.stack([model.with_levels(t)(images) for t in STEPS])
    for how in CORRECTIONS:
        windows = [spiking(model, parallel(levels=t, correction=how), samples) for t in STEPS]
        name = "parallel" if how == "none" else how
        outputs[name] = torch.cat([snn.simulate(images, 1, count=False).outputs for snn in windows])
    return {name: (100 * (o.argmax(-1) == labels).float().mean(1)).tolist() for name, o in outputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--levels", type=int, default=8, help="L, the levels of the activation while training")
    asked = parser.parse_args()
    training, held_out = read(asked.data)
    model = SmallCNN(asked.levels)
    for epoch, loss in enumerate(train(model, training, asked.epochs), start=1):
        print(f"epoch {epoch}: loss {loss:.3f}", flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), asked.out / "qcfs.safetensors")
    samples = training[0][:: max(len(training[0]) // 512, 1)]
    spiking(model, recipe_named("qcfs"), samples).save_pretrained(asked.out / "snn")
    with torch.no_grad():
        right = 100 * (model(held_out[0]).argmax(1) == held_out[1]).float().mean().item()
    print(f"trained with L = {asked.levels}: {right:.2f} % of {len(held_out[1])} held-out images right")
    rows = accuracies(model, samples, held_out)
    print("".join(f"{column:>12}" for column in ("T", *rows)))
    for i, t in enumerate(STEPS):
        print(f"{t:12}" + "".join(f"{row[i]:12.2f}" for row in rows.values()))


if __name__ == "__main__":
    main()
