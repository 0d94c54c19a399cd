"""transpike demo: the main job on an embedded model and data, with no download."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import output, progress, remark, show


def demo(
    context: typer.Context,
    out: Annotated[
        str, typer.Option(help="Folder for the converted network, the report and the pictures.")
    ] = "transpike-demo",
    steps: Annotated[int, typer.Option(help="Time-steps T.")] = 4,
    recipe: options.RecipeName = options.DEFAULT,
    max_memory: options.MaxMemory = None,
) -> None:
    """Convert a small Vision Transformer, evaluate held-out handwritten digits for T = 1..STEPS, write pictures."""
    from pathlib import Path

    from .. import pipeline
    from .. import report as reports
    from ..data import take
    from ..errors import MissingExtra

    options.check_steps(steps)
    options.check_folder("--out", out)
    chosen, budget = options.chosen_recipe(recipe), options.memory(max_memory)
    module = pipeline.ModelChoice("digits").load()
    few = pipeline.Part(take(pipeline.DataChoice("digits", split="train").open(module), 256), "digits")
    held_out = pipeline.Part(pipeline.DataChoice("digits", split="test").open(module), "digits")
    network = pipeline.convert_on(module, few, chosen, batch_size=64)
    network.save_pretrained(Path(out) / "network", extra=few.used())
    output.print(f"{network}\nsaved to {Path(out) / 'network'}\n", highlight=False, markup=False, soft_wrap=True)
    with progress(f"simulating T = {steps}", len(held_out.samples)) as advance:
        result = pipeline.evaluate_on(
            network, held_out, steps=steps, batch_size=64, progress=advance, max_memory=budget
        )
    show(reports.accuracy_table(result))
    show(result.energy.table())
    document = reports.document(
        network,
        result,
        command=context.obj,
        source={"spec": "digits"},
        data=held_out.record(),
        calibration_data=few.record(),
    )
    try:
        written = reports.write_report(Path(out), document, result)
    except MissingExtra as error:
        remark(f"no pictures: {error}")
        written = reports.write_report(Path(out), document, result, pictures=False)
    for path in written:
        output.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
