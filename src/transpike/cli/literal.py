"""transpike literal: the network in spikes, held against the fast simulator; a run that stops and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import Failures, progress, remark, show

if TYPE_CHECKING:
    from .._state import State


def literal(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="DIR", help="A folder written by convert.")],
    data: Annotated[
        str, typer.Option(help="Samples: an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits.")
    ],
    steps: Annotated[int, typer.Option(help="Time-steps T.")] = 8,
    limit: Annotated[int, typer.Option(help="Samples, taken together as one batch.")] = 4,
    state: Annotated[
        str | None, typer.Option(help="Keep the run in this file after each step; go on from it, if it is there.")
    ] = None,
    float64: Annotated[bool, typer.Option("--float64", help="Compute in float64, where both must agree.")] = False,
    json: Annotated[str | None, typer.Option(help="Write the comparison to this JSON file.")] = None,
    model: Annotated[
        str | None, typer.Option(help="module:factory that builds the model of DIR, where only you can.")
    ] = None,
    option: options.ModelOption = None,
    split: options.Split = "test",
    seed: options.Seed = 0,
) -> None:
    """Run the network in binary spikes, weights multiplied by each level, compensation explicit, and print after each
    step how far it is from the fast simulator."""
    from .. import pipeline
    from .._drift import drift, widen
    from ..codecs.state_file import load_state, save_state
    from ..errors import ConfigError
    from ..files import write_json

    for name, value in {"steps": steps, "limit": limit}.items():
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, not {value}")
    options.check_file("--json", json)
    options.check_file("--state", state)
    owner = None if model is None else pipeline.ModelChoice(model, options=options.key_values(option)).load()
    network = pipeline.load(target, model=owner)
    choice = pipeline.DataChoice(data, split=split, limit=limit, seed=seed, named=options.named(context))
    samples = choice.open(network.source_module, pipeline.read_config(Path(target)))
    batch = next(pipeline.inputs_of(pipeline.Part(samples, data), limit, Failures(), network.captured.batch_dim))
    if float64:
        widen(network)
    kept = None
    if state is not None and Path(state).exists():
        kept = load_state(network, state, inputs=batch)
        remark(f"{state} holds step {kept.t}; going on behind it")
    with progress(f"running T = {steps}", steps) as advance:

        def after(left: State) -> None:
            if state is not None:
                save_state(network, left, state)
            advance(left.t)

        found, left = drift(network, batch, steps=steps, state=kept, after=after)
    show(found.table())
    if state is not None:
        remark(f"wrote {state}: the state after step {left.t}")
    if json is not None:
        remark(f"wrote {write_json(Path(json), found.to_json())}")
