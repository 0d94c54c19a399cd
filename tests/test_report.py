"""The report says what the evaluation found, and nothing that JSON or a reader cannot take."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import rich.console
import torch

import transpike
from transpike._evaluate import Evaluation, evaluate
from transpike._model import SpikingModel
from transpike.errors import ConfigError, DataError, MissingExtra
from transpike.measure import Agreement, Tally, interval
from transpike.report import (
    accuracy_picture,
    accuracy_table,
    document,
    energy_picture,
    firing_picture,
    write_report,
)
from transpike.table import Table
from transpike.zoo.digits import load_digits, load_model

STEPS, SAMPLES = 4, 120
SRC = str(Path(transpike.__file__).resolve().parents[1])


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor | None


def batches(size: int, *, labelled: bool = True) -> list[Batch]:
    images, labels = load_digits("test")
    x, y = torch.from_numpy(images[:size]).float().unsqueeze(1) / 16, torch.from_numpy(labels[:size])
    return [Batch(part, answer if labelled else None) for part, answer in zip(x.split(50), y.split(50), strict=True)]


@pytest.fixture(scope="module")
def snn() -> SpikingModel:
    images, _ = load_digits("train")
    return transpike.convert(load_model(), [torch.from_numpy(images[:64]).float().unsqueeze(1) / 16], "ecmt")


@pytest.fixture(scope="module")
def labelled(snn: SpikingModel) -> Evaluation:
    return evaluate(snn, batches(SAMPLES), steps=STEPS)


@pytest.fixture(scope="module")
def unlabelled(snn: SpikingModel) -> Evaluation:
    return evaluate(snn, batches(20, labelled=False), steps=2)


def strict(value: object) -> dict:
    """Through JSON and back: raises on NaN, and the result must equal what went in (no tuple, no int key, no array)."""
    back = json.loads(json.dumps(value, allow_nan=False))
    assert back == value
    return back


def fake_tally(sites: int, steps: int) -> Tally:
    random = np.random.default_rng(0)
    tally = Tally(steps, samples=10)
    for index in range(sites):
        name = f"vision_model.encoder.layers.{index}.self_attn.out_proj:input"
        tally.add_spikes(name, 0, random.integers(0, 300, steps), 50)
    return tally


def png_size(path: Path) -> tuple[int, int]:
    """Width and height, after checking the signature, every chunk's checksum and the end."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, kinds = 8, []
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        body = data[position + 4 : position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0] == zlib.crc32(body)
        kinds.append(body[:4])
        position += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


# --- document --------------------------------------------------------------------------------------------------------


def test_document_holds_the_evaluations_numbers(snn: SpikingModel, labelled: Evaluation) -> None:
    report = strict(document(snn, labelled))
    score, tally = labelled.score, labelled.tally
    assert (report["format"], report["format_version"]) == ("transpike-report", 1)
    assert (report["samples"], report["steps"], report["mode"]) == (SAMPLES, STEPS, labelled.mode)
    assert report["source"]["accuracy"] == score.source_right / SAMPLES
    assert report["source"]["samples"] == SAMPLES
    assert report["source"]["interval"] == list(interval(score.source_right / SAMPLES, SAMPLES))
    assert report["accuracy"] == [right / SAMPLES for right in score.right]
    assert report["agreement"] == [same / SAMPLES for same in score.same]
    assert report["drop"] == pytest.approx([100 * (score.source_right - int(r)) / SAMPLES for r in score.right])
    for name in ("accuracy", "agreement"):
        for share, (low, high) in zip(report[name], report[f"{name}_interval"], strict=True):
            assert 0 <= low <= share <= high + 1e-12 <= 1 + 1e-12
    spikes = sum(counts.sum() for counts in tally.spikes.values())
    assert len(report["spikes_per_neuron"]) == STEPS
    assert report["spikes_per_neuron_total"] == pytest.approx(spikes / (tally.total_neurons * SAMPLES))
    assert report["energy"] == strict(labelled.energy.to_json())


def test_document_repeats_the_decisions(snn: SpikingModel, labelled: Evaluation) -> None:
    report = document(snn, labelled)
    assert list(report["sites"]) == [site.name for site in snn.plan.sites]
    for name, site in report["sites"].items():
        assert site["threshold"] == snn.thresholds[name].to_json()
        assert site["levels"] == snn.neurons[name].levels
        expected = labelled.tally.spikes[name] / (site["neurons"] * SAMPLES)
        assert site["rate"] == pytest.approx(expected.tolist())
    softmax = report["sites"]["blocks.0.attn:softmax"]
    assert softmax["kind"] == "softmax"
    assert softmax["shape"][0] is None
    assert softmax["neurons"] == 4 * 17 * 17
    assert report["plan"]["sites"] == len(snn.plan.sites)
    assert report["plan"]["analog"] == [{"layer": "patch_embed.proj", "reason": "first layer"}]
    assert report["plan"]["unknown"] == []
    assert transpike.Recipe.from_json(report["recipe"]) == snn.recipe
    assert report["calibration"] == {"samples": 64, "data": None}


def test_document_carries_what_the_caller_knows(snn: SpikingModel, labelled: Evaluation) -> None:
    report = strict(
        document(
            snn,
            labelled,
            command=["transpike", "evaluate"],
            source={"kind": "digits", "path": Path("weights"), "accuracy": 2.0},
            data={"name": "digits", "sizes": (np.int64(8), np.float32(0.5))},
            calibration_data={"name": "digits/train"},
            seed=7,
            failed=[{"item": "b\udcff.png", "error": "not an image"}],
            seconds={"evaluate": 1.5, "convert": float("nan")},
        )
    )
    assert report["command"] == ["transpike", "evaluate"]
    assert (report["source"]["kind"], report["source"]["path"]) == ("digits", "weights")
    assert report["source"]["accuracy"] == labelled.score.source_accuracy  # measured here, whatever the caller says
    assert report["data"] == {"name": "digits", "sizes": [8, 0.5]}
    assert report["calibration"]["data"] == {"name": "digits/train"}
    assert report["seed"] == 7
    assert report["failed"] == {"count": 1, "items": [{"item": "b\\udcff.png", "error": "not an image"}]}
    assert report["seconds"] == {"evaluate": 1.5, "convert": None}


def test_versions_name_what_computed(snn: SpikingModel, labelled: Evaluation) -> None:
    versions = document(snn, labelled)["versions"]
    assert versions["transpike"] == transpike.__version__
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
    assert versions["num_threads"] == torch.get_num_threads()
    assert versions["device"] == "cpu"
    assert all(versions[name] for name in ("python", "safetensors", "platform", "processor"))
    assert ("timm" in versions) == ("timm" in sys.modules)


def test_unlabelled_has_no_accuracy_but_an_agreement(snn: SpikingModel, unlabelled: Evaluation) -> None:
    report = strict(document(snn, unlabelled))
    assert [report[name] for name in ("accuracy", "accuracy_interval", "drop")] == [None, None, None]
    assert report["source"] == {"accuracy": None, "samples": 0, "interval": None}
    assert len(report["agreement"]) == len(report["agreement_interval"]) == 2


def test_intervals_of_partly_labelled_data_use_their_own_counts(snn: SpikingModel) -> None:
    mixed = [*batches(30), *batches(20, labelled=False)]
    report = document(snn, evaluate(snn, mixed, steps=1))
    assert (report["samples"], report["labelled"]) == (50, 30)
    assert report["accuracy_interval"] == [list(interval(report["accuracy"][0], 30))]
    assert report["agreement_interval"] == [list(interval(report["agreement"][0], 50))]


def test_a_ratio_that_is_not_a_number_becomes_null(snn: SpikingModel, labelled: Evaluation) -> None:
    nothing_dense = replace(labelled, energy=replace(labelled.energy, dense=0))
    assert strict(document(snn, nothing_dense))["energy"]["ratio"] == [None] * STEPS
    assert [row[-1] for row in accuracy_table(nothing_dense).rows] == ["-"] * STEPS


def test_a_value_json_cannot_hold_is_named(snn: SpikingModel, labelled: Evaluation) -> None:
    with pytest.raises(ConfigError, match=r"report\.data\.labels\[1\] is a set"):
        document(snn, labelled, data={"labels": [1, {2}]})


# --- table -----------------------------------------------------------------------------------------------------------


def test_table_has_one_row_per_step(labelled: Evaluation) -> None:
    table, score = accuracy_table(labelled), labelled.score
    assert [row[0] for row in table.rows] == ["1", "2", "3", "4"]
    by_name = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for step, row in enumerate(by_name):
        assert row["accuracy %"] == f"{100 * score.right[step] / SAMPLES:.2f}"
        assert row["agreement %"] == f"{100 * score.same[step] / SAMPLES:.2f}"
        low, high = interval(score.right[step] / SAMPLES, SAMPLES)
        assert row["95 % interval"] == f"{100 * low:.1f} - {100 * high:.1f}"
        drop = 100 * (score.source_right - int(score.right[step])) / SAMPLES
        assert float(row["drop (points)"]) == pytest.approx(drop, abs=0.006)
        assert row["energy ratio"] == f"{labelled.energy.ratio[step]:.3f}"
    assert by_name[-1]["spikes/neuron"] == f"{labelled.tally.spikes_per_neuron().sum():.2f}"
    assert f"source model: {100 * score.source_right / SAMPLES:.2f} %" in table.notes[0]
    assert "on 120 samples" in table.notes[0]


def test_table_without_labels_shows_the_interval_of_the_agreement(unlabelled: Evaluation) -> None:
    table = accuracy_table(unlabelled)
    assert table.columns == ("t", "agreement %", "95 % interval", "spikes/neuron", "energy ratio")
    low, high = interval(unlabelled.score.agreement[-1], 20)
    assert table.rows[-1][2] == f"{100 * low:.1f} - {100 * high:.1f}"
    assert "20 samples without labels" in table.notes[0]


def test_no_drop_is_not_negative_zero(labelled: Evaluation) -> None:
    score = Agreement(1)
    score.samples = score.labelled = 10
    score.source_right, score.right, score.same = 7, np.array([7]), np.array([10])
    assert accuracy_table(replace(labelled, score=score)).rows[0][3] == "0.00"


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([4], None, r"output has shape \[4\], one number a sample"),
        ([4], [4], r"output has shape \[4\]"),
        ([4, 3], [4, 1], r"labels of shape \[4, 1\] do not fit scores of shape \[4, 3\].*, \[4\], with -100"),
        ([4, 7, 3], [4], r"labels of shape \[4\] do not fit .* \[4, 7\]"),
        ([4, 4, 3], [4], r"labels of shape \[4\] do not fit .* \[4, 4\]"),  # what broadcasts without a word
    ],
)
def test_one_label_for_each_prediction(scores: list[int], labels: list[int] | None, words: str) -> None:
    score = Agreement(2)
    with pytest.raises(DataError, match=words):
        score.update(torch.ones(scores), torch.ones(2, *scores), None if labels is None else torch.zeros(labels))
    assert score.samples == 0


@pytest.mark.parametrize("rich_width", [None, 60])
def test_a_wide_table_keeps_every_digit(rich_width: int | None) -> None:
    """As text, and folded on a narrow terminal; remarks wrap as they did."""
    numbers = [f"{t}.2345" for t in range(3 if rich_width else 64)]
    columns, site = ("site", *(f"t={t}" for t in range(len(numbers)))), "blocks.11.attention.projection:input" * 2
    table = Table("Spikes", columns, ((site, *numbers),), ("remark " * 20,))
    text = str(table)
    if rich_width:
        console = rich.console.Console(file=io.StringIO(), width=rich_width)
        console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
    else:
        assert text.splitlines()[-1] == ("remark " * 20).rstrip() and len(text.splitlines()[4].split()) == 65
    assert all(number in text for number in numbers) and "…" not in text


# --- pictures --------------------------------------------------------------------------------------------------------


def test_folder_holds_report_and_pictures(snn: SpikingModel, labelled: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    report = document(snn, labelled)
    written = write_report(tmp_path / "new", report, labelled)
    assert [path.name for path in written] == ["report.json", "accuracy.png", "energy.png", "firing.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in written)
    assert json.loads(written[0].read_text(encoding="utf-8")) == report
    for picture in written[1:]:
        width, height = png_size(picture)
        assert 800 <= width <= 1600
        assert 500 <= height <= 2000
        assert 10_000 < picture.stat().st_size < 500_000


def test_energy_picture_has_every_account_and_break_even_point(snn: SpikingModel, labelled: Evaluation) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    from transpike.report.energy_picture import energy_figure

    sheet = strict(document(snn, labelled))["energy_sheet"]
    upper, lower = energy_figure(sheet).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in upper.get_lines()}
    for account in ("paper's", "compute-complete", "with memory", "with memory, shared reads"):
        (wanted,) = [c for c in sheet["comparisons"] if (c["opponent"], c["account"]) == ("FP32", account)]
        assert drawn[account] == wanted["ratio"]
    assert drawn["_break-even"] == [1, 1]
    lines = {line.get_label(): list(line.get_ydata()) for line in lower.get_lines()}
    assert lines["spikes per synapse"] == sheet["spikes_per_synapse"]
    assert lines["spikes per neuron"] == sheet["spikes_per_neuron"]
    assert lines["_same silicon, one word per neuron"] == [1.72, 1.72]
    assert lines["_compute only, FP32 against FP32"] == [pytest.approx(4.6 / 0.9)] * 2
    (band,) = lower.patches
    assert (band.get_label(), band.get_y(), band.get_height()) == (
        "_memory counted, by kind of ANN accelerator", 0.15, pytest.approx(1.38 - 0.15)
    )  # fmt: skip
    texts = [text.get_text().replace("\n", " ") for text in lower.texts]
    assert "1.72 per neuron: same silicon, one word per neuron (Davidson and Furber)" in texts
    assert "0.15 to 1.38 per synapse: memory counted, by kind of ANN accelerator (Dampfhoffer et al.)" in texts
    assert "5.11 per synapse: compute only, FP32 against FP32 (horowitz-45nm)" in texts
    heights = sorted(text.get_position()[1] for text in lower.texts)
    assert len(heights) == 4 and min(np.diff(heights)) > 0.149  # names do not cover each other


@pytest.mark.parametrize("steps", [1, 64])
def test_energy_picture_of_any_length(steps: int, snn: SpikingModel, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    sheet = document(snn, evaluate(snn, batches(2), steps=steps))["energy_sheet"]
    assert png_size(energy_picture(sheet, tmp_path / "energy.png"))[0] == 1200
    silent = {**sheet, "spikes_per_synapse": [0.0] * steps, "spikes_per_neuron": [0.0] * steps}
    unknown = [{**c, "ratio": [None] * steps} for c in sheet["comparisons"]]
    assert png_size(energy_picture({**silent, "comparisons": unknown}, tmp_path / "silent.png"))[0] == 1200


def test_report_without_pictures(snn: SpikingModel, labelled: Evaluation, tmp_path: Path) -> None:
    written = write_report(tmp_path, document(snn, labelled), labelled, pictures=False)
    assert written == [tmp_path / "report.json"]
    assert list(tmp_path.iterdir()) == written


def test_without_matplotlib_the_json_is_still_written(
    snn: SpikingModel, labelled: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.style"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"transpike\[plots\]"):
        write_report(tmp_path, document(snn, labelled), labelled)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(("sites", "steps"), [(1, 1), (41, 8), (100, 33)])
def test_firing_picture_of_any_size_stays_on_a_page(sites: int, steps: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    width, height = png_size(firing_picture(fake_tally(sites, steps), tmp_path / "firing.png"))
    assert width == 1200
    assert 400 <= height <= 1700


def test_firing_picture_names_the_layers_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    from matplotlib.axes import Axes

    named: list[list[str]] = []
    original = Axes.set_yticks

    def recording(self: Axes, ticks: object, labels: list[str], **options: object) -> object:
        named.append(list(labels))
        return original(self, ticks, labels, **options)

    monkeypatch.setattr(Axes, "set_yticks", recording)
    firing_picture(fake_tally(100, 2), tmp_path / "firing.png")
    assert len(named[0]) == len(set(named[0])) == 34
    assert named[0][1].endswith("layers.3.self_attn.out_proj:input")
    assert all(len(label) <= 50 for label in named[0])


def test_firing_picture_without_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no site to draw"):
        firing_picture(Tally(2, samples=1), tmp_path / "firing.png")
    assert not list(tmp_path.iterdir())


def test_accuracy_picture_without_labels(unlabelled: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    assert png_size(accuracy_picture(unlabelled, tmp_path / "accuracy.png"))[0] == 1200


def test_a_dark_style_of_the_user_changes_nothing(labelled: Evaluation, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    usual = accuracy_picture(labelled, tmp_path / "usual.png").read_bytes()
    with matplotlib.rc_context({"text.color": "white", "axes.facecolor": "black", "font.size": 30}):
        assert accuracy_picture(labelled, tmp_path / "dark.png").read_bytes() == usual


def test_importing_the_room_loads_no_matplotlib() -> None:
    code = f"import sys; sys.path.insert(0, {SRC!r}); import transpike.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_drawing_never_loads_pyplot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are the extra 'plots'")
    code = (
        f"import sys; sys.path.insert(0, {SRC!r})\n"
        "from pathlib import Path\nimport numpy as np\n"
        "from transpike.measure import Tally\nfrom transpike.report import firing_picture\n"
        "tally = Tally(2, samples=1); tally.add_spikes('a:input', 0, np.array([1, 2]), 4)\n"
        f"firing_picture(tally, Path({str(tmp_path / 'firing.png')!r}))\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
