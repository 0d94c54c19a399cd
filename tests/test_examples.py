"""The shared models load strictly and reproduce their published numbers."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import prepare_shared
import shared_models

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not DATA.is_dir(), reason="the shared models and data are not beside the checkout"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare_shared.prepare(DATA, out)
    return out


def loaded(model: nn.Module, path: Path) -> nn.Module:
    weights = {name.removeprefix("module."): value for name, value in load_file(path).items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def as_input(model: nn.Module, images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, C] -> normalised float [B, C, H, W]."""
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    assert x.shape[1:] == cfg["input_size"]
    return (x - mean) / std


@torch.no_grad()
def percent_right(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    predicted = torch.cat([model(batch).argmax(1) for batch in as_input(model, images).split(250)])
    assert int(predicted.max()) < model.pretrained_cfg["num_classes"]
    return 100 * float((predicted.numpy() == labels).mean())


def npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as data:
        return data["x"], data["y"]


def test_mnist_vit() -> None:
    x, y = npz(DATA / "mnist" / "mnist_test.npz")
    model = loaded(shared_models.mnist_vit(), DATA / "vit-mnist" / "vit_mnist_gpu.safetensors")
    # Not the first 2000: they are harder than the rest (96.20 %).
    assert percent_right(model, x[::5, ..., None], y[::5]) == pytest.approx(97.21, abs=1.0)


@pytest.mark.parametrize(
    ("name", "published"),
    [("mnist_vit_3class", 99.46), ("mnist_vit_3class_attn_only", 99.17)],
    ids=["mlp", "attn_only"],
)
def test_mnist_vit_of_three_classes(prepared: Path, name: str, published: float) -> None:
    x, y = npz(prepared / "mnist_3class_test.npz")
    assert set(y.tolist()) == {0, 1, 2}
    file = name.removeprefix("mnist_") + ".safetensors"
    model = loaded(getattr(shared_models, name)(), DATA / "vit-mnist" / file.replace("vit_", "vit_mnist_", 1))
    assert percent_right(model, x[..., None], y) == pytest.approx(published, abs=0.05)


def test_resnet20_cifar10() -> None:
    image = pytest.importorskip("PIL.Image", reason="the images are JPEG files")
    with tarfile.open(DATA / "cifar10" / "cifar10_test_jpg.tar") as tar:
        members = sorted((member for member in tar.getmembers() if member.isfile()), key=lambda member: member.name)
        classes = sorted({member.name.split("/")[1] for member in members})
        chosen = [members[i] for i in np.random.default_rng(0).choice(len(members), 2000, replace=False)]
        images = [np.asarray(image.open(io.BytesIO(tar.extractfile(member).read()))) for member in chosen]
    labels = np.array([classes.index(member.name.split("/")[1]) for member in chosen])
    model = loaded(shared_models.resnet20_cifar10(), DATA / "resnet-cifar10" / "resnet20-12fca82f.safetensors")
    assert percent_right(model, np.stack(images), labels) == pytest.approx(81.03, abs=1.5)


@torch.no_grad()
def test_sorter_sorts_all_729(prepared: Path) -> None:
    model = loaded(shared_models.mingpt_sorter(), prepared / "mingpt_sorter.safetensors")
    x, y = (torch.from_numpy(array) for array in npz(prepared / "sorter_729.npz"))
    assert x.shape == y.shape == (729, 11)
    assert int(((model(x).argmax(-1) == y) | (y == -100)).all(1).sum()) == 729
    tokens = x[:, :6]
    for _ in range(6):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    torch.testing.assert_close(tokens[:, 6:], x[:, :6].sort(dim=1).values)


@torch.no_grad()
def test_sorter_reproduces_its_authors_activations(prepared: Path) -> None:
    model = loaded(shared_models.mingpt_sorter(), prepared / "mingpt_sorter.safetensors")
    theirs = prepare_shared.decode_json(DATA / "nanogpt-sort" / "gpt-nano-sort-t0-partials.json")
    torch.testing.assert_close(model(theirs["idx"].long()), theirs["lm_head"], rtol=1e-4, atol=1e-4)


def tour_length(coordinates: Tensor, nodes: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Lengths [B] of the tours that Kool et al.'s decoder builds greedily from node embeddings [B, N, 128]."""
    batch, num, width = nodes.shape
    rows = torch.arange(batch)
    project = {name: value.T for name, value in weights.items() if name.startswith("project_")}
    key, value, logit_key = (nodes @ project["project_node_embeddings.weight"]).chunk(3, dim=-1)
    fixed = nodes.mean(1) @ project["project_fixed_context.weight"]
    context = weights["W_placeholder"].expand(batch, -1)
    visited, tour = torch.zeros(batch, num, dtype=torch.bool), []
    for _ in range(num):
        query = (fixed + context @ project["project_step_context.weight"]).view(batch, 8, 1, -1)
        heads = [t.view(batch, num, 8, -1).transpose(1, 2) for t in (key, value)]
        scores = query @ heads[0].transpose(-1, -2) / (width // 8) ** 0.5
        glimpse = scores.masked_fill(visited[:, None, None], -torch.inf).softmax(-1) @ heads[1]
        glimpse = glimpse.reshape(batch, 1, width) @ project["project_out.weight"]
        logits = (glimpse @ logit_key.transpose(-1, -2)).squeeze(1).masked_fill(visited, -torch.inf)
        tour.append(logits.argmax(1))
        visited[rows, tour[-1]] = True
        context = torch.cat([nodes[rows, tour[0]], nodes[rows, tour[-1]]], dim=1)
    path = coordinates[rows[:, None], torch.stack(tour, dim=1)]
    return (path - path.roll(1, dims=1)).norm(dim=-1).sum(1)


@torch.no_grad()
def test_tsp_encoder_gives_short_tours(prepared: Path) -> None:
    model = loaded(shared_models.tsp_encoder(), prepared / "tsp_encoder.safetensors")
    decoder = load_file(DATA / "attention-tsp" / "tsp_20.safetensors")
    coordinates = torch.rand(500, 20, 2, generator=torch.Generator().manual_seed(0))
    # Published greedy mean for 20 nodes: 3.85 (optimum 3.84); visiting the nodes in a random order costs about 10.4.
    assert float(tour_length(coordinates, model(coordinates), decoder).mean()) == pytest.approx(3.85, abs=0.1)
    untrained = shared_models.tsp_encoder().eval()
    assert float(tour_length(coordinates, untrained(coordinates), decoder).mean()) > 4.5
