"""transpike eval: accuracy, agreement, spikes and energy after every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..group import join
from . import options
from .console import Failures, progress, remark, show

if TYPE_CHECKING:
    from .._early_exit import EarlyExit, ExitBook
    from .._evaluate import Evaluation
    from ..energy import EnergySheet
    from ..group import Group
    from ..pipeline import DataChoice, ModelChoice, Ready
    from ..recipes import Recipe


# What decides how a model becomes spiking: without effect on a network that already is.
CONVERSION = (
    "calibration", "recipe", "checkpoint", "pretrained", "levels", "percentile", "set", "first_layer", "head", "analog",
    "allow_unknown", "samples", "every", "batch_dim",
)  # fmt: skip

# With --early-exit --calibration they choose what sets its threshold; else those do that calibrated the network.
EXIT_SAMPLES = ("calibration", "samples", "every")


def evaluate(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="DIR_OR_MODEL", help="A folder written by convert, or a model as for convert.")
    ],
    data: Annotated[
        str, typer.Option(help="Labelled samples: an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits.")
    ],
    steps: Annotated[int | None, typer.Option(help="Time-steps T; by default those of the recipe.")] = None,
    json: Annotated[str | None, typer.Option(help="Write the report to this JSON file.")] = None,
    report: Annotated[str | None, typer.Option(help="Write report.json and pictures to this folder.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Calibration samples, when DIR_OR_MODEL is a model (by default a part of DATA), or for --early-exit."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of DIR, when only you can build it (module:factory) or its folder moved.")
    ] = None,
    recipe: options.RecipeName = options.DEFAULT,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained = False,
    option: options.ModelOption = None,
    levels: options.Levels = None,
    percentile: options.PercentileOption = None,
    set: options.Set = None,
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
    kernel: Annotated[str, typer.Option(help="How neurons run: auto, compiled or eager.")] = "auto",
    max_memory: options.MaxMemory = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    precision: options.Precision = "float32",
    labels: options.Labels = "auto",
    split: options.Split = "test",
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    max_length: options.MaxLength = None,
    spikes: Annotated[bool, typer.Option("--spikes", help="Also print spikes per site and step.")] = False,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also print the complete energy sheet.")] = False,
    prices: Annotated[str | None, typer.Option(help="Price table: a built-in name or a .toml file.")] = None,
    journal: Annotated[
        str | None,
        typer.Option(help="Keep what every batch gave in this file; the same command again continues a killed run."),
    ] = None,
    early_exit: Annotated[
        float | None,
        typer.Option(
            help="Also say what it saves to stop samples early: the share of calibration samples whose decision may "
            "change, 0.01. With --mode streaming they stop for real, too."
        ),
    ] = None,
) -> None:
    """Evaluate a converted network, or convert a model on the spot and evaluate it, for T = 1..STEPS in one pass."""
    from .. import pipeline

    _check(context, target, pipeline.is_saved(target), steps, mode, kernel, early_exit)
    options.check_precision(precision)
    _check_outputs(json, report, journal)
    from ..energy import load_prices

    table, budget = None if prices is None else load_prices(prices), options.memory(max_memory)
    devices = options.devices(device_map, offload_folder)
    device = options.device(device, spread=devices is not None)
    failures, started, group = Failures(), time.perf_counter(), join()
    _check_early(early_exit, journal, group)
    preprocess = options.preprocessing(input_size, mean, std, crop_pct, interpolation)
    named = options.named(context, shared=() if calibration is None else options.PREPARING)
    asked = pipeline.DataChoice(data, labels, split, limit, seed, max_length, preprocess, named)
    other = asked.calibrating(calibration)
    if pipeline.is_saved(target):
        owner = pipeline.ModelChoice(model, options=options.key_values(option)) if model else None
        ready = pipeline.ready_saved(
            target, owner, asked, other, count=samples, every=every, device=device, again=early_exit is not None
        )
    else:
        chosen = options.chosen_recipe(
            recipe, set, levels=levels, percentile=percentile, first_layer=first_layer, head=head,
            analog=tuple(analog or ()), allow_unknown=allow_unknown,
        )  # fmt: skip
        choice = pipeline.ModelChoice(target, checkpoint, pretrained, options.key_values(option), device)
        ready = _fresh(
            choice, chosen, asked, other, count=samples, every=every, batch_size=batch_size, batch_dim=batch_dim,
            on_failure=failures, tuned=options.tuned_on([recipe]), group=group,
        )  # fmt: skip
    if ready.remark:
        remark(ready.remark)
    converted = time.perf_counter()
    steps = ready.network.recipe.steps if steps is None else steps
    ready.network.max_memory, ready.network.precision = budget, precision
    ready.network.kernel = pipeline.kernel_for(ready.network, ready.part, steps, kernel)
    if devices is not None:
        ready.network.dispatch(devices, offload_folder=offload_folder)
    unread = failures if pipeline.is_saved(target) else None  # samples that calibrated it are told already
    book = None if early_exit is None else _exits(ready, early_exit, steps, batch_size, mode, unread)
    with progress(f"simulating T = {steps}", len(ready.part.samples), resumes=journal is not None) as advance:
        result = pipeline.evaluate_on(
            ready.network, ready.part, steps=steps, batch_size=batch_size, mode=mode, kernel=kernel, max_memory=budget,
            on_failure=failures, progress=advance, journal=journal, group=group,
            watch=None if book is None else book.update, prices=table,
        )  # fmt: skip
    seconds = {"convert": converted - started, "evaluate": time.perf_counter() - converted}
    exits = None if book is None else book.result()
    if group.main:
        document = _document(
            ready, result, exits, _precision(ready, steps, batch_size, mode), command=context.obj, seed=seed,
            failed=failures.items, seconds=seconds, prices=table,
        )  # fmt: skip
        _show(result, exits, failures, spikes, ready.network.energy_sheet(result.tally, table) if sheet else None)
        _write(document, result, json, report)
    if exits is not None and early_exit is not None and mode == "streaming":
        _stop(ready, exits, early_exit, batch_size)


def _fresh(
    choice: ModelChoice, recipe: Recipe, asked: DataChoice, other: DataChoice | None, *, count: int, **how: Any
) -> Ready:
    from .. import pipeline

    module = choice.load()
    if choice.random_weights:
        remark(f"{choice.spec} has random weights; pass --pretrained or --checkpoint for trained ones")
    with progress("calibrating", count) as advance:
        return pipeline.ready_fresh(module, choice, recipe, asked, other, count=count, progress=advance, **how)


def _precision(ready: Ready, steps: int, batch_size: int, mode: str) -> dict[str, Any]:
    """What was computed in and, unless that is float32, what it changes, which is said, too."""
    from .. import _speed

    if ready.network.precision == "float32":
        return {"used": "float32"}
    found = _speed.precision_on(ready.network, ready.part, steps=steps, batch_size=batch_size, mode=mode)
    remark(
        f"{ready.network.precision} against float32 on {found.samples} samples: "
        f"{100 * found.agreement:.2f} % of decisions the same, "
        f"outputs differ by up to {found.largest_difference:.3g} (of {found.largest_output:.3g})"
    )
    return {"used": ready.network.precision, **vars(found)}


def _exits(ready: Ready, share: float, steps: int, batch_size: int, mode: str, failures: Failures | None) -> ExitBook:
    from .. import _speed
    from ..errors import ConfigError

    if ready.few is None:
        raise ConfigError("the samples that calibrated this network are not in the data; name some with --calibration")
    with progress("early exit", len(ready.few.samples)) as advance:
        return _speed.exit_book(
            ready.network, ready.few, steps=steps, max_change=share, batch_size=batch_size, mode=mode,
            on_failure=failures or (lambda item, error: None), progress=advance,
        )  # fmt: skip


def _stop(ready: Ready, exits: EarlyExit, share: float, batch_size: int) -> None:
    """Once more without counting, whole and with samples that leave the batch when they stop; say what that saves."""
    from .. import _speed

    if ready.network.unfoldable:
        remark(f"no sample stopped for real: they cannot leave a batch ({ready.network.unfoldable})")
        return
    seconds = []
    for threshold in (1.0, exits.threshold(share)):
        began = time.perf_counter()
        took = _speed.stop_on(ready.network, ready.part, steps=exits.steps, threshold=threshold, batch_size=batch_size)
        seconds.append(time.perf_counter() - began)
    remark(
        f"stopped for real at max change {100 * share:g} %: {sum(took) / len(took):.2f} steps a sample, "
        f"{seconds[1]:.1f} s; all {exits.steps} steps: {seconds[0]:.1f} s (streaming, without counting)"
    )


def _check_outputs(json: str | None, report: str | None, journal: str | None) -> None:
    options.check_file("--json", json)
    options.check_folder("--report", report)
    options.check_file("--journal", journal)
    options.check_apart(journal=journal, json=json, report=None if report is None else f"{report}/report.json")


def _check_early(share: float | None, journal: str | None, group: Group) -> None:
    from ..errors import ConfigError

    if share is None:
        return
    if not 0 <= share <= 1:
        raise ConfigError(f"--early-exit takes a share from 0 to 1, such as 0.01, not {share:g}")
    if journal is not None or group.count > 1:
        what = "a journal" if journal is not None else "several processes"
        raise ConfigError(f"--early-exit does not go with {what} yet; run it in one process and without --journal")


def _check(
    context: typer.Context, target: str, saved: bool, steps: int | None, mode: str, kernel: str, early: float | None
) -> None:
    """Raise ConfigError for what would only show after a long run, or would silently have no effect."""
    from ..errors import ConfigError
    from ..neurons import KERNELS

    if steps is not None:
        options.check_steps(steps)
    options.check_mode(mode)
    if kernel not in KERNELS:
        raise ConfigError(f"--kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
    with_model = bool(options.given(context, ("model",)))
    free = () if early is None else EXIT_SAMPLES if options.given(context, ("calibration",)) else ("calibration",)
    fixed = [name for name in CONVERSION if name not in free]
    idle = options.given(context, (*fixed, *(() if with_model else ("option",))) if saved else ("model",))
    if idle and saved:
        raise ConfigError(f"{target} is converted already, so {idle} cannot change it; leave that out, or convert anew")
    if idle:
        raise ConfigError(f"{target} is a model itself; leave {idle} out, or name a folder that convert wrote")


def _document(
    ready: Ready, result: Evaluation, exits: EarlyExit | None, precision: Mapping[str, Any], **record: Any
) -> dict[str, Any]:
    from ..report import document

    more = {"precision": precision, **({} if exits is None else {"early_exit": exits.to_json()})}
    return document(
        ready.network, result, source=ready.source, data=ready.part.record(), calibration_data=ready.calibration,
        more=more, **record,
    )  # fmt: skip


def _show(
    result: Evaluation, exits: EarlyExit | None, failures: Failures, spikes: bool, sheet: EnergySheet | None
) -> None:
    from ..report import accuracy_table

    show(accuracy_table(result))
    if exits is not None:
        show(exits.table())
    if spikes:
        show(result.tally.table())
    show(result.energy.table())
    if sheet is not None:
        show(sheet)
    if failures.items:
        remark(f"{failures.count()} skipped as unreadable")


def _write(document: Mapping[str, Any], result: Evaluation, json: str | None, report: str | None) -> None:
    from pathlib import Path

    from ..files import write_json
    from ..report import write_report

    if json is not None:
        remark(f"wrote {write_json(Path(json), document)}")
    if report is not None:
        for path in write_report(Path(report), document, result):
            remark(f"wrote {path}")
