"""transpike export: spike events, weights and NIR graphs, for people with hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Failures, progress, remark, show

if TYPE_CHECKING:
    from .._model import SpikingModel
    from ..pipeline import Part

app = typer.Typer(help="Write a converted network for hardware: events, weights or a NIR graph.", no_args_is_help=True)

Target = Annotated[str, typer.Argument(metavar="DIR", help="A folder written by convert.")]
OutFile = Annotated[str, typer.Option(help="The file to write.")]
OutFolder = Annotated[str, typer.Option(help="The folder to write.")]
Steps = Annotated[int, typer.Option(help="Time-steps T.")]
Few = Annotated[int, typer.Option(help="Samples, taken together as one batch.")]
Owner = Annotated[str | None, typer.Option(help="module:factory that builds the model of DIR, where only you can.")]
DATA_HELP = "an image folder, .tar, .npz, CIFAR folder, datasets:NAME, or digits."


@app.command()
def events(
    context: typer.Context,
    target: Target,
    out: OutFile,
    data: Annotated[str, typer.Option(help=f"Samples: {DATA_HELP}")],
    steps: Steps = 8,
    limit: Few = 4,
    model: Owner = None,
    option: options.ModelOption = None,
    split: options.Split = "test",
    seed: options.Seed = 0,
) -> None:
    """Write every spike of some samples; interrupted, OUT.partial holds the whole steps until then."""
    from pathlib import Path

    from ..codecs.events import partial_path, read_events, write_events
    from ..errors import ConfigError

    _positive(steps=steps, limit=limit)
    network = _network(target, model, option)
    batch = _batch(network, _whole(network, target, data, split, seed, options.named(context)), limit, seed)
    partial = partial_path(Path(out))
    try:
        with progress(f"writing T = {steps}", steps) as advance:
            path = write_events(network, batch, out, steps=steps, progress=advance)
    except KeyboardInterrupt:
        if partial.exists():
            remark(f"{partial} holds {read_events(partial).steps} of {steps} steps, and is readable")
        raise
    written = read_events(path)
    if written.truncated:  # the disk gave back other bytes than it took
        raise ConfigError(f"{path} {written.problem}; write it again")
    spikes = sum(int(count.sum()) for count in written.counts().values())
    size = path.stat().st_size
    remark(f"wrote {path}: {spikes:,} spikes of {written.header['samples']} samples in {steps} steps, {size:,} bytes")


@app.command()
def weights(
    target: Target,
    out: OutFolder,
    scaled: Annotated[
        bool, typer.Option("--scaled", help="Also one copy of the weights per level, multiplied by it.")
    ] = False,
    fold_batch_norm: Annotated[
        bool, typer.Option("--fold-batch-norm", help="Write batch normalisation into the layer before it.")
    ] = False,
    model: Owner = None,
    option: options.ModelOption = None,
) -> None:
    """Write weights, biases, thresholds and levels of every layer, and list what stays analog or compensated."""
    from ..codecs.weights import MANIFEST, write_weights
    from ..files import read_json_file

    folder = write_weights(_network(target, model, option), out, scaled=scaled, fold_batch_norm=fold_batch_norm)
    manifest = read_json_file(folder / MANIFEST)
    spiking = sum(layer["site"] is not None for layer in manifest["layers"])
    kept = sorted({row["op"] for row in manifest["graph"] if row["treatment"].startswith(("compensated", "analog"))})
    size = sum(path.stat().st_size for path in folder.iterdir())
    remark(f"wrote {folder}: {len(manifest['layers'])} weight layers, {spiking} of them spiking, {size:,} bytes")
    remark(f"analog or compensated: {', '.join(kept) or 'nothing'}; {MANIFEST} names each with its module")


@app.command()
def nir(
    context: typer.Context,
    target: Target,
    out: Annotated[str, typer.Option(help="The .nir file to write; with --segments, the folder.")],
    segments: Annotated[
        bool, typer.Option("--segments", help="One graph per neuron and its layers, where NIR cannot hold the whole.")
    ] = False,
    relu_neurons: Annotated[
        str | None, typer.Option(help=f"Give every ReLU a neuron, calibrated on these samples: {DATA_HELP}")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"Run the written graph on these samples: {DATA_HELP}")] = None,
    steps: Steps = 8,
    limit: Few = 4,
    calibration_samples: Annotated[int, typer.Option(help="Samples of RELU_NEURONS that calibrate.")] = 256,
    model: Owner = None,
    option: options.ModelOption = None,
    split: options.Split = "test",
    seed: options.Seed = 0,
) -> None:
    """Write a NIR graph, read it back, run it on DATA, and print how far it drifts from the network.

    RELU_NEURONS and DATA that are one source are split.
    """
    from .. import pipeline
    from ..codecs.nir_drift import drift
    from ..codecs.nir_file import read_nir
    from ..codecs.nir_graph import write_nir
    from ..codecs.relu_neurons import relu_neurons as give_neurons
    from ..data import take
    from ..errors import ConfigError

    _positive(steps=steps, limit=limit, calibration_samples=calibration_samples)
    if segments and (data or relu_neurons):
        raise ConfigError("--segments writes graphs that run only between other operators; drop --data, --relu-neurons")
    network = source = _network(target, model, option)
    named = options.named(context, shared=("split",) if data and relu_neurons else ())
    part = None if data is None else _whole(source, target, data, split, seed, named)
    if relu_neurons is not None:
        few = _whole(source, target, relu_neurons, split, seed, named)
        if part is None:
            few = pipeline.Part(take(few.samples, calibration_samples, seed=seed), relu_neurons)
        else:
            few, part, said = pipeline.separate(part, few, count=calibration_samples, every=None, seed=seed)
            if said:
                remark(said)
        batches = pipeline.inputs_of(few, 16, Failures(), source.captured.batch_dim)
        network = give_neurons(source, batches, max_samples=None)
    batch = None if part is None else _batch(source, part, limit, seed)
    remark(f"wrote {write_nir(network, out, segments=segments)}")
    if batch is None:
        return
    show(drift(network, read_nir(out), batch, steps=steps).table())
    if network is not source:
        before, after = (m.simulate(batch, steps, count=False).outputs for m in (source, network))
        agree = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
        apart = (before - after).abs().max().item()
        remark(f"neurons behind every ReLU moved the outputs of the saved network by up to {apart:.3g}; "
               f"both agree on {agree:.1%} of all samples and steps")  # fmt: skip


def _positive(**values: int) -> None:
    from ..errors import ConfigError

    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def _network(target: str, model: str | None, option: list[str] | None) -> SpikingModel:
    from .. import pipeline

    owner = None if model is None else pipeline.ModelChoice(model, options=options.key_values(option)).load()
    return pipeline.load(target, model=owner)


def _whole(network: SpikingModel, target: str, data: str, split: str, seed: int, named: frozenset[str]) -> Part:
    """Samples prepared as those that calibrated the saved network."""
    from pathlib import Path

    from .. import pipeline

    choice = pipeline.DataChoice(data, split=split, seed=seed, named=named)
    return pipeline.Part(choice.open(network.source_module, pipeline.read_config(Path(target))), data)


def _batch(network: SpikingModel, part: Part, limit: int, seed: int) -> Any:
    """`limit` samples in one batch."""
    from .. import pipeline
    from ..data import take

    few = pipeline.Part(take(part.samples, limit, seed=seed), part.spec)
    return next(pipeline.inputs_of(few, limit, Failures(), network.captured.batch_dim))
