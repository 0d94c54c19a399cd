"""transpike compare: several recipes on one model and the same samples."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Failures, progress, remark, show

if TYPE_CHECKING:
    from .._compare import RecipeComparison


def compare(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Labelled samples: an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits.")
    ],
    recipes: Annotated[
        str, typer.Option(help="Recipes or JSON files, comma-separated, with settings: ecmt:levels=10:symmetric=true.")
    ] = "ecmt,ecmt-code,differential",
    steps: Annotated[str, typer.Option(help="Numbers of time-steps, comma-separated.")] = "1,2,4,8",
    json: Annotated[str | None, typer.Option(help="Write the numbers to this JSON file.")] = None,
    report: Annotated[str | None, typer.Option(help="Write comparison.json and .png to this folder.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration samples; by default a part of DATA.")] = None,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained = False,
    option: options.ModelOption = None,
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
    device: options.Device = "auto",
    mode: Annotated[str, typer.Option(help="auto, folded or streaming.")] = "auto",
    max_memory: options.MaxMemory = None,
    prices: Annotated[str | None, typer.Option(help="Price table: a built-in name or a .toml file.")] = None,
    labels: options.Labels = "auto",
    split: options.Split = "test",
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    max_length: options.MaxLength = None,
) -> None:
    """Convert MODEL by every recipe, with the same calibration samples, and evaluate all on the same samples.

    A recipe that does not fit the model gets a row that says why; exit code 2 when none fits.
    """
    from .. import pipeline
    from ..energy import load_prices

    asked = options.whole_numbers(steps, "--steps")
    options.check_mode(mode)
    options.check_file("--json", json)
    options.check_folder("--report", report)
    options.check_apart(json=json, report=None if report is None else f"{report}/comparison.json")
    wanted = options.chosen_recipes(
        recipes, first_layer=first_layer, head=head, analog=tuple(analog or ()), allow_unknown=allow_unknown
    )
    table, budget = None if prices is None else load_prices(prices), options.memory(max_memory)
    failures, started = Failures(), time.perf_counter()
    preprocess = options.preprocessing(input_size, mean, std, crop_pct, interpolation)
    choice = pipeline.ModelChoice(model, checkpoint, pretrained, options.key_values(option), options.device(device))
    module = choice.load()
    if choice.random_weights:
        remark(f"{model} has random weights; pass --pretrained or --checkpoint for trained ones")
    named = options.named(context, shared=() if calibration is None else options.PREPARING)
    known = pipeline.DataChoice(data, labels, split, limit, seed, max_length, preprocess, named)
    other = known.calibrating(calibration)
    few, part, said = pipeline.parts(module, known, other, count=samples, every=every, tuned=options.tuned_on(wanted))
    if said:
        remark(said)

    def on_failed(label: str, error: Exception) -> None:
        remark(f"{label} does not fit: {str(error).partition(chr(10))[0]}")

    policies = len({recipe.policy for recipe in wanted.values()})
    with progress("calibrating", policies * len(few.samples)) as advance:
        networks = pipeline.convert_each_on(
            module, few, wanted, batch_size=batch_size, batch_dim=batch_dim, on_failure=failures,
            on_failed=on_failed, progress=advance,
        )  # fmt: skip
    converted = time.perf_counter()
    with progress(f"simulating {len(wanted)} recipes, T = {asked[-1]}", len(wanted) * len(part.samples)) as advance:
        result = pipeline.evaluate_each_on(
            networks, part, steps=asked, batch_size=batch_size, mode=mode, prices=table, on_failure=failures,
            on_failed=on_failed, progress=advance, max_memory=budget,
        )  # fmt: skip
    seconds = {"convert": converted - started, "evaluate": time.perf_counter() - converted}
    record = {"source": choice.to_json(), "data": part.record(), "calibration_data": few.record(), "seconds": seconds}
    _present(result, failures, json, report, command=context.obj, seed=seed, device=choice.device, **record)


def _present(result: RecipeComparison, failures: Failures, json: str | None, report: str | None, **record: Any) -> None:
    from pathlib import Path

    from ..files import write_json
    from ..report.comparison import comparison_document, comparison_tables, write_comparison

    for table in comparison_tables(result):
        show(table)
    if failures.items:
        remark(f"{failures.count()} skipped as unreadable")
    document = comparison_document(result, failed=failures.items, **record)
    if json is not None:
        remark(f"wrote {write_json(Path(json), document)}")
    if report is not None:
        for path in write_comparison(Path(report), document):
            remark(f"wrote {path}")
