"""transpike inspect: every site and operator of a model, before anything is converted."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import output, remark, show


def inspect(
    model: options.Model,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained = False,
    option: options.ModelOption = None,
    recipe: options.RecipeName = options.DEFAULT,
    set: options.Set = None,
    first_layer: options.FirstLayer = None,
    head: options.Head = None,
    analog: options.Analog = None,
    input_shape: Annotated[str | None, typer.Option(help="Shape of one sample, e.g. 3,224,224.")] = None,
    integers: Annotated[bool, typer.Option("--integers", help="The input is int64 (token ids).")] = False,
    batch_dim: options.BatchDim = 0,
    json: Annotated[str | None, typer.Option(help="Also write the plan to this JSON file.")] = None,
) -> None:
    """Show what would become of every operator of MODEL: spiking, compensated, passes through, or unknown."""
    import dataclasses
    from pathlib import Path

    from .._capture import capture
    from .._plan import plan
    from .._substitute import notes
    from ..errors import PlanError
    from ..files import write_json
    from ..pipeline import ModelChoice, batch_at, try_model
    from ..zoo import example_inputs

    options.check_file("--json", json)
    chosen = options.chosen_recipe(recipe, set, first_layer=first_layer, head=head, analog=tuple(analog or ()))
    module = ModelChoice(model, checkpoint, pretrained, options.key_values(option)).load()
    example = example_inputs(module, shape=options.numbers(input_shape, int), integers=integers)
    example = batch_at(batch_dim, example)
    try_model(module, example, where="inputs")
    captured = capture(module, example, batch_dim=batch_dim)
    decided = plan(captured, dataclasses.replace(chosen.policy, allow_unknown=True))
    decided = dataclasses.replace(decided, notes=notes(decided, chosen))
    chosen.policy.check_patterns(decided.layers)
    show(decided.site_table())
    show(decided.operator_table())
    parameters = sum(p.numel() for p in module.parameters())
    summary = f"{type(module).__name__}, {parameters:,} parameters, recipe {chosen.name}"
    output.print(summary, highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        remark(f"wrote {write_json(Path(json), dataclasses.asdict(decided))}")
    if decided.unknown:
        first = decided.unknown[0]
        raise PlanError(
            f"{len(decided.unknown)} operator(s) have no rule (first: {first.op} in {first.module or 'the model'}); "
            "convert refuses this model unless you pass --allow-unknown"
        )
