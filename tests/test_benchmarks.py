"""The benchmarks' own parts: the split, the models they build, the tables of committed results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from transpike.recipes import balanced

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("spikingjelly_*.json"))
DIVERGENCES = sorted((ROOT / "benchmarks" / "results").glob("divergence_*.json"))
ABLATIONS = sorted((ROOT / "benchmarks" / "results").glob("ablation_*.json"))


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "spikingjelly")
    return importlib.import_module("common")


def test_no_calibration_sample_is_evaluated(common: Any) -> None:
    for name, (calibrate, evaluate) in common.COUNTS.items():
        split = common.read_split(name)
        assert len(set(split["calibrate"])) == calibrate
        assert len(set(split["evaluate"])) == evaluate
        assert not set(split["calibrate"]) & set(split["evaluate"])


def test_dense_operations_are_those_of_the_layers(common: Any) -> None:
    model, counted = common.ResNet20().eval(), []

    def count(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        counted.append(output[0].numel() * module.weight[0].numel())

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and name != "conv1":
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 32, 32))
    assert sum(counted) == common.dense_behind_spikes("resnet20")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_documents_show_what_the_results_hold(common: Any, path: Path) -> None:
    rows = importlib.import_module("table").document(json.loads(path.read_text("utf-8"))).splitlines()
    shown = (ROOT / "docs" / "results.md").read_text("utf-8").splitlines()
    numbers = [row for row in rows if row.startswith(("| SpikingJelly", "| transpike"))]
    assert len(numbers) > 20
    assert set(numbers) <= set(shown)


@pytest.fixture
def divergence(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("divergence")


def test_the_default_divergence_is_what_the_rule_chooses(divergence: Any) -> None:
    result = json.loads(DIVERGENCES[-1].read_text("utf-8"))
    rows = [row for row in result["rows"] if not row["setting"]]
    assert {row["model"] for row in rows} == {case.name for case in divergence.cases("S", "OUT")}
    assert divergence.choice(rows) == balanced().range.divergence == result["chosen"]["{}"]
    shown = (ROOT / "docs" / "balanced.md").read_text("utf-8").splitlines()
    assert set(divergence.table(result).splitlines()) <= set(shown)


def test_expected_agreement_is_that_of_noise_apart_from_margins(divergence: Any) -> None:
    """Leads and changes drawn apart: counting 20,000 of them says the same."""
    torch.manual_seed(0)
    lead, change = torch.rand(20_000).double(), 0.2 * torch.randn(20_000).double()
    same = (lead + change > 0).double()
    none = [torch.zeros(1).double()]
    judged = divergence.Judged([same], [lead], [change], none, none, 1.0, 1)
    found = judged.summary()
    assert 0.9 < found["agreement"] < 0.95
    assert found["expected"] == pytest.approx(found["agreement"], abs=0.005)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models and data are not beside the checkout")
def test_models_are_the_published_ones(common: Any) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file

    from shared_models import resnet20_cifar10

    published = resnet20_cifar10()
    weights = load_file(SHARED / "resnet-cifar10" / "resnet20-12fca82f.safetensors")
    published.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    deit = timm.create_model("deit_tiny_patch16_224")
    deit.load_state_dict(load_file(SHARED / "deit-tiny" / "deit_tiny_patch16_224.safetensors"))
    for name, theirs, size in (("resnet20", published, 32), ("vit", deit, 224)):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(common.MODELS[name](SHARED)(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_the_readme_shows_what_the_speed_results_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    files = sorted((ROOT / "benchmarks" / "results").glob("models_*.json"))
    runs = [run for path in files for run in json.loads(path.read_text("utf-8"))]
    table = importlib.import_module("models_table").rows(runs)
    assert len(table) > 2
    assert "\n".join(table) in (ROOT / "README.md").read_text("utf-8")


def test_both_tools_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rows = importlib.import_module("models_table").rows
    one = {"model": "timm ViT", "threads": 1, "steps": 4, "ratio": {"compiled": 1.2}}
    ours = {"model": "torchvision ViT", "threads": 1, "steps": 4, "ratio": {"T passes": 1.0, "compiled": 1.3}}
    theirs = {**ours, "ratio": {"T passes": 1.0, "SpikingJelly 2.0": 2.4}}
    assert not any("SpikingJelly" in row for row in rows([{"cases": [one]}, {"cases": [ours]}]))
    table = rows([{"cases": [one]}, {"cases": [ours]}, {"cases": [theirs]}])
    assert table[0].endswith("| SpikingJelly 2.0 |")
    assert table[2:] == [
        "| timm ViT | 1 | 4 | 1.20 |  |  |  |  |  |  |  |",
        "| torchvision ViT | 1 | 4 | 1.30 |  |  |  |  |  |  | 2.40 |",
    ]


def test_a_slope_is_passes_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    fitted = importlib.import_module("slope").fitted
    assert fitted({2: 3.0, 4: 5.5, 8: 10.5}) == {"slope": 1.25, "intercept": 0.5, "largest_residual": 0.0}
    assert fitted({2: 2.0, 4: 4.3, 8: 8.0})["largest_residual"] > 0.1


def test_the_step_by_step_network_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    import transpike

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    step_by_step = importlib.import_module("step_by_step").step_by_step
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).double().eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    snn = transpike.convert(source, [images], "ecmt")
    thresholds = {name: (threshold.positive, threshold.negative) for name, threshold in snn.thresholds.items()}
    ours = snn.simulate(images, 4).outputs
    assert (step_by_step(source, images, thresholds, 4) - ours).abs().max() < 1e-10


def test_a_rotation_changes_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rotation = importlib.import_module("rotation")
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 30, 24, generator=generator), torch.randn(40, 24, generator=generator).double()
    x[..., 5] *= 20
    seen = rotation.seen_of("a", x + 1, weight)
    assert seen.x.shape == (60, 24) and seen.means.shape == (30, 24)
    forms = rotation.forms(seen)
    centred = {"centred": seen.means.mean(0).expand(60, 24), "positions": seen.means[seen.position]}
    for name, (said, reads) in forms.items():
        wanted = (seen.x - centred.get(name, 0)) @ weight.T
        torch.testing.assert_close(said @ reads.T, wanted, rtol=1e-7, atol=1e-7)
    turn = rotation.hadamard(24, generator)
    torch.testing.assert_close(turn @ turn.T, torch.eye(24, dtype=torch.float64))
    assert int((turn != 0).sum(1).max()) == 8
    error = rotation.measure(*forms["none"][:1], weight.T @ weight, 0.1)[0]
    found = [rotation.spikes_at(*forms[name], error) for name in ("none", "hadamard")]
    assert found[0] < found[1], "one channel of outliers costs its own levels, not those of all others"


def test_the_recipes_of_the_ablation_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from transpike.cli.options import chosen_recipes

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ablation = importlib.import_module("ablation")
    for group in ablation.GROUPS.values():
        assert len(chosen_recipes(",".join(recipe for _, recipe in group))) == len(group)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("ablation_*.json")), ids=lambda p: p.stem
)
def test_documents_show_the_ablation(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = importlib.import_module("ablation").tables(json.loads(path.read_text("utf-8")))
    shown = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert len(found.split("\n\n")) > 1
    assert all(table in shown for table in found.split("\n\n"))
