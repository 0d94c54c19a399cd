"""transpike convert: a model and unlabelled samples -> a folder with the spiking network."""

from __future__ import annotations

from typing import Annotated

import typer

from ..group import join
from . import options
from .console import Failures, output, progress, remark, show


def convert(
    context: typer.Context,
    model: options.Model,
    calibration: Annotated[
        str,
        typer.Option(help="Unlabelled samples: an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits."),
    ],
    out: Annotated[str, typer.Option(help="Folder to write.")],
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
    quiet: options.Quiet = False,
) -> None:
    """Convert MODEL without training and save it; it loads again without the calibration data."""
    from ..pipeline import DataChoice, ModelChoice, Part, convert_on, drawn

    options.check_folder("--out", out)
    chosen = options.chosen_recipe(
        recipe, set, levels=levels, percentile=percentile, first_layer=first_layer, head=head,
        analog=tuple(analog or ()), allow_unknown=allow_unknown,
    )  # fmt: skip
    source = ModelChoice(model, checkpoint, pretrained, options.key_values(option), options.device(device))
    module = source.load()
    if source.random_weights:
        remark(f"{model} has random weights; pass --pretrained or --checkpoint for trained ones")
    preprocess = options.preprocessing(input_size, mean, std, crop_pct, interpolation)
    choice = DataChoice(calibration, "none", split, None, seed, max_length, preprocess, options.named(context))
    few = drawn(choice.open(module), count=samples, every=every, seed=seed)
    part, failures, group = Part(few, calibration), Failures(), join()
    with progress("calibrating", len(few)) as advance:
        network = convert_on(
            module, part, chosen, batch_size=batch_size, batch_dim=batch_dim, on_failure=failures, progress=advance,
            group=group,
        )  # fmt: skip
    if not group.main:
        return
    known = choice.preparation(module)
    tuned = {"tuned": records} if (records := options.tuned_on([recipe])) else {}
    network.save_pretrained(out, extra={**part.used(), **known, "seed": seed, "failed": failures.items, **tuned})
    if not quiet:
        show(network.plan.site_table())
        show(network.plan.operator_table())
    output.print(f"{network}\nsaved to {out}", highlight=False, markup=False, soft_wrap=True)
