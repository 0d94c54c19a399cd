"""transpike eval: accuracy, agreement, spikes and energy after every step."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from . import options
from .console import Failures, progress, remark, show


def evaluate(
    target: Annotated[str, typer.Argument(metavar="DIR_OR_MODEL", help="A folder written by convert, or a model as for convert.")],
    data: Annotated[str, typer.Option(help="Labelled samples: an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits.")],
    steps: Annotated[int, typer.Option(help="Time-steps T.")] = 8,
    json: Annotated[str | None, typer.Option(help="Write the report to this JSON file.")] = None,
    report: Annotated[str | None, typer.Option(help="Write report.json and pictures to this folder.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration samples, when DIR_OR_MODEL is a model; by default a part of DATA.")] = None,
    model: Annotated[str | None, typer.Option(help="module:factory that builds the model of DIR, where only you can.")] = None,
    recipe: options.RecipeName = "ecmt",
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained = False,
    option: options.ModelOption = None,
    levels: options.Levels = None,
    percentile: options.PercentileOption = None,
    first_layer: options.FirstLayer = None,
    head: options.Head = None,
    analog: options.Analog = None,
    allow_unknown: options.AllowUnknown = False,
    samples: options.Samples = 256,
    every: options.Every = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 16,
    batch_dim: options.BatchDim = 0,
    mode: Annotated[str, typer.Option(help="auto, folded or streaming.")] = "auto",
    labels: options.Labels = "auto",
    split: options.Split = "test",
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    max_length: options.MaxLength = None,
    spikes: Annotated[bool, typer.Option("--spikes", help="Also print spikes per site and step.")] = False,
) -> None:
    """Evaluate a converted network, or convert a model on the spot and evaluate it, for T = 1..STEPS in one pass."""
    from pathlib import Path

    from .. import pipeline
    from ..errors import ConfigError

    if steps < 1:
        raise ConfigError(f"--steps must be at least 1, not {steps}")
    failures, started = Failures(), time.perf_counter()
    preprocess = options.preprocessing(input_size, mean, std, crop_pct, interpolation)
    chosen_data = pipeline.DataChoice(data, labels, split, limit, seed, max_length, preprocess)
    if pipeline.is_saved(target):
        module = pipeline.ModelChoice(model, None, False, options.key_values(option)).load() if model else None
        network = pipeline.load(target, model=module)
        saved = pipeline.read_config(Path(target))["calibration"]
        part, kept_apart = pipeline.without_calibration(pipeline.Part(chosen_data.open(network.source_module), data), saved)
        source, used = {"saved": target}, saved
    else:
        chosen = options.chosen_recipe(
            recipe, levels=levels, percentile=percentile, first_layer=first_layer, head=head,
            analog=tuple(analog or ()), allow_unknown=allow_unknown,
        )  # fmt: skip
        choice = pipeline.ModelChoice(target, checkpoint, pretrained, options.key_values(option))
        module = choice.load()
        if choice.random_weights:
            remark(f"{target} has random weights; pass --pretrained or --checkpoint for trained ones")
        other = None
        if calibration is not None:
            other_choice = pipeline.DataChoice(calibration, "none", "train" if calibration != data else split, None, seed, max_length, preprocess)
            other = pipeline.Part(other_choice.open(module), calibration)
        whole = pipeline.Part(chosen_data.open(module), data)
        few, part, kept_apart = pipeline.separate(whole, other, count=samples, every=every, seed=seed)
        with progress("calibrating", len(few.samples)) as advance:
            network = pipeline.convert_on(
                module, few, chosen, batch_size=batch_size, batch_dim=batch_dim, on_failure=failures, progress=advance
            )
        source, used = choice.to_json(), few.record()
    if kept_apart:
        remark(kept_apart)
    converted = time.perf_counter()
    with progress(f"simulating T = {steps}", len(part.samples)) as advance:
        result = pipeline.evaluate_on(
            network, part, steps=steps, batch_size=batch_size, mode=mode, on_failure=failures, progress=advance
        )
    seconds = {"convert": converted - started, "evaluate": time.perf_counter() - converted}
    _present(network, result, source, part.record(), used, seed, failures, seconds, json, report, spikes)


def _present(network, result, source, data, used, seed, failures, seconds, json, report, spikes) -> None:  # noqa: ANN001
    from pathlib import Path

    from .. import report as reports
    from ..files import write_json

    document = reports.document(
        network, result, command=sys.argv, source=source, data=data, calibration_data=used, seed=seed,
        failed=failures.items, seconds=seconds,
    )  # fmt: skip
    show(reports.accuracy_table(result))
    if spikes:
        show(result.tally.table())
    show(result.energy.table())
    if failures.items:
        remark(f"{len(failures.items)} samples could not be read and were skipped; the report names them")
    if json is not None:
        remark(f"wrote {write_json(Path(json), document)}")
    if report is not None:
        for path in reports.write_report(Path(report), document, result):
            remark(f"wrote {path}")
