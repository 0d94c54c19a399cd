"""transpike tune: the cheapest settings of a recipe that still agree with the source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Failures, remark, show, stages

if TYPE_CHECKING:
    from .._tune import Tuned

NOT_REACHED = 1


def tune(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        str,
        typer.Option(help="Calibration samples, labels unused: an image folder, .tar, .npz, datasets:NAME, or digits."),
    ],
    max_drop: Annotated[
        float | None,
        typer.Option(help="Target: least energy, losing at most this many points of agreement (0.5 by default)."),
    ] = None,
    max_energy: Annotated[
        float | None, typer.Option(help="Target: least error for at most this ratio to the source's energy.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write the recipe to this JSON file, for --recipe.")] = None,
    journal: Annotated[
        str | None, typer.Option(help="Keep evaluated settings in this file, and go on from what it holds.")
    ] = None,
    json: Annotated[str | None, typer.Option(help="Write all numbers to this JSON file.")] = None,
    steps: Annotated[str, typer.Option(help="Numbers of time-steps to choose from, comma-separated.")] = "1,2,4,8",
    by: Annotated[
        str, typer.Option(help="Choose by site, or by role: the same place in every block together.")
    ] = "site",
    few: Annotated[int, typer.Option(help="Samples for the sensitivity of single sites.")] = 32,
    settings: Annotated[int, typer.Option(help="Settings judged at most, besides single sites.")] = 60,
    recipe: options.RecipeName = "ecmt",
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained = False,
    option: options.ModelOption = None,
    set: options.Set = None,
    first_layer: options.FirstLayer = None,
    head: options.Head = None,
    analog: options.Analog = None,
    allow_unknown: options.AllowUnknown = False,
    samples: options.Samples = 256,
    every: options.Every = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 16,
    batch_dim: options.BatchDim = 0,
    device: options.Device = "auto",
    split: options.Split = "train",
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    max_length: options.MaxLength = None,
) -> None:
    """Choose time-steps, and thresholds, levels and cutoffs by site, on calibration samples alone.

    Half of the samples set thresholds, the other half judge, by agreement with the source and by output error. Exit
    code 1 when the target is not reached; the best found is then shown and written all the same.
    """
    from .. import pipeline
    from .._tune import Target
    from .._tune import tune as search
    from ..data import split as split_samples
    from ..errors import ConfigError

    target = Target(0.5 if max_drop is None and max_energy is None else max_drop, max_energy)
    asked = options.whole_numbers(steps, "--steps")
    for name, path in {"--out": out, "--journal": journal, "--json": json}.items():
        options.check_file(name, path)
    options.check_apart(out=out, journal=journal, json=json)
    if out is not None and not out.endswith(".json"):
        raise ConfigError(f"--recipe takes files that end in .json; name --out {out}.json")
    chosen = options.chosen_recipe(
        recipe, set, first_layer=first_layer, head=head, analog=tuple(analog or ()), allow_unknown=allow_unknown
    )
    preprocess = options.preprocessing(input_size, mean, std, crop_pct, interpolation)
    source = pipeline.ModelChoice(model, checkpoint, pretrained, options.key_values(option), options.device(device))
    module = source.load()
    if source.random_weights:
        remark(f"{model} has random weights; pass --pretrained or --checkpoint for trained ones")
    known = pipeline.DataChoice(data, "none", split, None, seed, max_length, preprocess, options.named(context))
    calibrating = pipeline.drawn(known.open(module), count=samples, every=every, seed=seed)
    first, second = split_samples(calibrating, calibration=len(calibrating) // 2, seed=seed)
    failures = Failures()
    with stages() as advance:
        tuned = search(
            module,
            pipeline.tried_inputs(module, pipeline.Part(first, data), batch_size, failures, batch_dim),
            pipeline.inputs_of(pipeline.Part(second, data), batch_size, failures, batch_dim),
            chosen,
            max_drop=target.max_drop, max_energy=target.max_energy, steps=asked, by=by, few=few, settings=settings,
            batch_dim=batch_dim, journal=journal, progress=advance,
        )  # fmt: skip
    record = {"data": pipeline.Part(calibrating, data).used(), "command": context.obj}
    _present(tuned, failures, out, json, source=source.to_json(), seed=seed, device=source.device, **record)
    if not tuned.reached:
        raise typer.Exit(NOT_REACHED)


def _present(
    tuned: Tuned, failures: Failures, out: str | None, json: str | None, *, data: Any, command: Any, **more: Any
) -> None:
    from pathlib import Path

    from ..files import write_json
    from ..report.tuning import (
        choice_table,
        front_table,
        recipe_document,
        sensitivity_table,
        summary,
        tuning_document,
    )

    show(sensitivity_table(tuned))
    show(front_table(tuned))
    show(choice_table(tuned))
    if tuned.resumed:
        remark(f"{tuned.resumed} settings were read from the journal, {tuned.measured} evaluated")
    if failures.items:
        remark(f"{failures.count()} skipped as unreadable")
    if out is not None:
        remark(f"wrote {write_json(Path(out), recipe_document(tuned, data=data, command=command))}")
    if json is not None:
        document = tuning_document(tuned, command=command, data=data, failed=failures.items, **more)
        remark(f"wrote {write_json(Path(json), document)}")
    remark(summary(tuned))
