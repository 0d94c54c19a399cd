"""transpike layers: which layer hurts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Failures, progress, remark, show

if TYPE_CHECKING:
    from .._levels import LevelCounts
    from .._model import SpikingModel


def layers(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="DIR", help="A folder written by convert.")],
    data: Annotated[
        str, typer.Option(help="Samples: an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits.")
    ],
    steps: Annotated[int, typer.Option(help="Time-steps T.")] = 8,
    json: Annotated[str | None, typer.Option(help="Write the numbers to this JSON file.")] = None,
    report: Annotated[str | None, typer.Option(help="Write layers.json and layers.png to this folder.")] = None,
    limit: options.Limit = None,
    worst: Annotated[int, typer.Option(help="Sites in the table of the worst.")] = 10,
    levels: Annotated[
        bool, typer.Option("--levels", help="Also count spikes by level: a table, in the JSON, and levels.png.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="module:factory that builds the model of DIR, where only you can.")
    ] = None,
    option: options.ModelOption = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    split: options.Split = "test",
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    max_length: options.MaxLength = None,
) -> None:
    """Show what the neurons of each site lose against the source model: noise, saturation, silence, and energy."""
    from pathlib import Path

    from .. import pipeline
    from .._diagnose import diagnose
    from .._levels import LevelCounts
    from ..errors import ConfigError
    from ..files import write_json
    from ..report.layers import layers_document, write_layers

    for name, value in {"steps": steps, "worst": worst}.items():
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, not {value}")
    options.check_file("--json", json)
    options.check_folder("--report", report)
    options.check_apart(json=json, report=None if report is None else f"{report}/layers.json")
    preprocess = options.preprocessing(input_size, mean, std, crop_pct, interpolation)
    asked = pipeline.DataChoice(data, "auto", split, limit, seed, max_length, preprocess, options.named(context))
    owner = pipeline.ModelChoice(model, options=options.key_values(option)) if model else None
    ready = pipeline.ready_saved(target, owner, asked, device=options.device(device))
    if ready.remark:
        remark(ready.remark)
    failures, counted = Failures(), LevelCounts(steps) if levels else None
    with progress(f"simulating T = {steps}", len(ready.part.samples)) as advance:
        batches = pipeline.inputs_of(ready.part, batch_size, failures, ready.network.captured.batch_dim)
        if counted is not None:
            batches = _counting(ready.network, batches, counted)
        view = diagnose(ready.network, batches, steps=steps, progress=advance)
    show(view.table())
    show(view.worst_table(worst))
    if counted is not None:
        show(counted.table())
    if failures.items:
        remark(f"{failures.count()} skipped as unreadable")
    document = layers_document(
        ready.network, view, source=ready.source, data=ready.part.record(), failed=failures.items,
        command=context.obj, seed=seed, levels=counted,
    )  # fmt: skip
    if json is not None:
        remark(f"wrote {write_json(Path(json), document)}")
    if report is not None:
        for path in write_layers(Path(report), document, view, counted):
            remark(f"wrote {path}")


def _counting(model: SpikingModel, batches: Iterable[Any], counted: LevelCounts) -> Iterator[Any]:
    """The same batches, whose spikes are added to `counted` on the way."""
    from .._levels import count_levels

    for inputs in batches:
        yield inputs  # first, so that what is wrong with a batch is said by who reads it
        counted += count_levels(model, inputs, steps=counted.steps)
