"""The verbs in order, as the command line runs them: load, open, split, convert, evaluate. Prints nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

from ._capture import call_of
from ._choices import DataChoice, ModelChoice, has_splits
from ._compare import Failed, Misfit, RecipeComparison, convert_each, evaluate_each
from ._convert import convert
from ._evaluate import Evaluation, Numbered, Watch, evaluate_numbered
from ._load import load
from ._model import SpikingModel
from ._parts import Part, calibrated_on, drawn, separate, without_calibration, without_tuning
from .codecs.bundle import CONFIG, FORMAT, read_config
from .data import Batch, loader, windows
from .energy import PriceTable, paper_account
from .errors import ConfigError, DataError, is_out_of_memory
from .group import ALONE, Group
from .neurons import choose
from .recipes import Recipe
from .zoo.source import reason

Failure = Callable[[str, Exception], None]
Progress = Callable[[int], None]


def parts(
    module: torch.nn.Module,
    data: DataChoice,
    calibration: DataChoice | None,
    *,
    count: int,
    every: int | None,
    tuned: Sequence[Mapping[str, Any]] = (),
) -> tuple[Part, Part, str]:
    """What calibrates and what is evaluated, of samples as the model reads them; see `separate`. `tuned`: records of
    samples that tuned a recipe, which are not evaluated."""
    whole = Part(data.open(module), data.spec)
    other = None
    if calibration is not None and (calibration.spec != data.spec or has_splits(data.spec)):
        other = Part(calibration.open(module), calibration.spec)
    few, part, remark = separate(whole, other, count=count, every=every, seed=data.seed)
    return few, *without_tuning(part, tuned, remark)


def batch_at(axis: int, inputs: Any) -> Any:
    """Inputs with their batch, which is read as the first axis, at `axis`. Raises ConfigError where there is none."""

    def moved(leaf: torch.Tensor) -> torch.Tensor:
        if not 0 <= axis < leaf.dim():
            raise ConfigError(f"--batch-dim {axis} is no dimension of inputs of shape {list(leaf.shape)}")
        return leaf.movedim(0, axis)

    return pytree.tree_map_only(torch.Tensor, moved, inputs) if axis else inputs


def inputs_of(part: Part, batch_size: int, on_failure: Failure | None, batch_dim: int) -> Iterator[Any]:
    """Model inputs in batches, without labels."""
    batches = loader(part.samples, batch_size=batch_size, on_failure=on_failure)
    return (batch_at(batch_dim, batch.inputs) for batch in batches)


def try_model(model: torch.nn.Module, inputs: Any, *, where: str) -> None:
    """Run the model once: what does not fit it shows here, before torch.export puts it in words of its own.

    Raises: DataError with the shapes and the model's complaint.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]

    def as_taken(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    args, kwargs = pytree.tree_map_only(torch.Tensor, as_taken, call_of(inputs))
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # whatever a forward of theirs raises
        if is_out_of_memory(error):
            raise
        shapes = " and ".join(dict.fromkeys(f"[{', '.join(map(str, leaf.shape))}]" for leaf in leaves))
        raise DataError(
            f"{type(model).__name__} does not run on {where} in batches of shape {shapes} ({reason(error)}); "
            "check that data, preprocessing and model belong together"
        ) from error


def tried_inputs(
    model: torch.nn.Module, part: Part, batch_size: int, on_failure: Failure | None, batch_dim: int
) -> Iterator[Any]:
    """`inputs_of`, once the model has run on the first batch."""
    batches = inputs_of(part, batch_size, on_failure, batch_dim)
    first = next(batches)
    try_model(model, first, where=part.spec)
    return chain([first], batches)


def convert_on(
    model: torch.nn.Module,
    part: Part,
    recipe: Recipe,
    *,
    batch_size: int = 16,
    batch_dim: int = 0,
    on_failure: Failure | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> SpikingModel:
    """Convert with every sample of `part` for calibration."""
    batches = tried_inputs(model, part, batch_size, on_failure, batch_dim)
    return convert(model, batches, recipe, batch_dim=batch_dim, max_samples=None, progress=progress, group=group)


def evaluate_on(
    model: SpikingModel,
    part: Part,
    *,
    steps: int,
    batch_size: int = 16,
    mode: str = "auto",
    kernel: str = "auto",
    on_failure: Failure | None = None,
    progress: Progress | None = None,
    journal: str | None = None,
    group: Group = ALONE,
    watch: Watch | None = None,
    max_memory: int | None = None,
    prices: PriceTable | None = None,
) -> Evaluation:
    """Evaluate on every sample of `part`; labels beyond the model's classes are refused.

    Arguments: kernel, max_memory -- as in `simulate`; "auto" compiles where all samples together are worth it. journal,
    group -- as for `transpike.evaluate`, but every process reads only its own batches. prices -- of the energy account.
    """

    def read(numbers: Iterator[int]) -> Iterator[Numbered]:
        found = windows(part.samples, numbers, batch_size=batch_size, num_classes=model.num_outputs)
        return (Numbered(window.number, _labelled(model, window.batch), window.failed) for window in found)

    model.max_memory = max_memory
    model.kernel = kernel_for(model, part, steps, kernel)
    about = {"batch_size": batch_size, "data": _about(part)} if journal is not None or group.count > 1 else {}
    found = evaluate_numbered(
        model, read, steps=steps, mode=mode, about=about, progress=progress, on_failure=on_failure, journal=journal,
        group=group, watch=watch,
    )  # fmt: skip
    return replace(found, energy=paper_account(found.tally, model.plan, prices))


def _labelled(model: SpikingModel, batch: Batch | None) -> Batch | None:
    """A batch as the model takes it."""
    return batch and replace(batch, inputs=batch_at(model.captured.batch_dim, batch.inputs))


def kernel_for(model: SpikingModel, part: Part, steps: int, kernel: str) -> str:
    """How neurons run on all samples of a part: "auto" compiles where all together are worth it."""
    return choose(kernel, len(part.samples) * model.neurons_per_sample * steps, model.device)


def _about(part: Part) -> dict[str, Any]:
    """What names the samples, wherever they are stored, and how they are read, in a few words."""
    record, whole = part.record(), part.whole
    told = {"indices": record["indices"], "labels": getattr(whole, "labels", None)}
    found = {name: hashlib.sha256(str(value).encode()).hexdigest() for name, value in told.items()}
    read = {name: str(getattr(whole, name, None)) for name in ("preprocess", "max_length")}
    return {"fingerprint": record["fingerprint"], "samples": record["samples"], **found, **read}


def convert_each_on(
    model: torch.nn.Module,
    part: Part,
    recipes: Mapping[str, Recipe],
    *,
    batch_size: int = 16,
    batch_dim: int = 0,
    on_failure: Failure | None = None,
    on_failed: Failed | None = None,
    progress: Progress | None = None,
) -> dict[str, SpikingModel | Misfit]:
    """Convert by every recipe with every sample of `part` for calibration."""
    batches = tried_inputs(model, part, batch_size, on_failure, batch_dim)
    return convert_each(
        model, batches, recipes, batch_dim=batch_dim, max_samples=None, on_failed=on_failed, progress=progress
    )


def evaluate_each_on(
    networks: Mapping[str, SpikingModel | Misfit],
    part: Part,
    *,
    steps: Sequence[int],
    batch_size: int = 16,
    mode: str = "auto",
    prices: PriceTable | None = None,
    on_failure: Failure | None = None,
    on_failed: Failed | None = None,
    progress: Progress | None = None,
    max_memory: int | None = None,
) -> RecipeComparison:
    """Evaluate every network on every sample of `part`; labels beyond the model's classes are refused."""
    fitting = [network for network in networks.values() if isinstance(network, SpikingModel)]
    for network in fitting:
        network.max_memory = max_memory
        network.kernel = kernel_for(network, part, max(steps), "auto")
    classes = fitting[0].num_outputs if fitting else None
    found = loader(part.samples, batch_size=batch_size, on_failure=on_failure, num_classes=classes)
    batches = (_labelled(fitting[0], batch) for batch in found)
    return evaluate_each(
        networks, batches, steps=steps, mode=mode, prices=prices, on_failed=on_failed, progress=progress
    )


@dataclass(frozen=True)
class Ready:
    """A network and the samples to evaluate it on, with what the report says about both."""

    network: SpikingModel
    part: Part
    source: Mapping[str, Any]
    calibration: Mapping[str, Any]
    remark: str
    few: Part | None = None  # samples that calibrated it or, where others are named, those; None: not at hand


def ready_saved(
    target: str,
    model: ModelChoice | None,
    data: DataChoice,
    calibration: DataChoice | None = None,
    *,
    count: int = 256,
    every: int | None = None,
    device: str = "cpu",
    again: bool = False,
) -> Ready:
    """A saved network, evaluated on what did not calibrate it. `model` builds the source where only its owner can;
    `calibration`: samples of which some set what is still to be set; `again`: else those that calibrated it do."""
    network = load(target, model=None if model is None else model.load()).to(device)
    saved = read_config(Path(target))
    whole = Part(data.open(network.source_module, saved), data.spec)
    part, remark = without_calibration(whole, saved["calibration"])
    part, remark = without_tuning(part, saved["calibration"].get("tuned", ()), remark)
    few = None
    if calibration is None and again:
        few = calibrated_on(whole.whole, saved["calibration"])
    elif calibration is not None:
        other = Part(calibration.open(network.source_module, saved), calibration.spec)
        few, part, more = separate(part, other, count=count, every=every, seed=data.seed)
        remark = "; ".join(filter(None, (remark, more)))
    source = {"saved": target, "model": None if model is None else model.spec}
    return Ready(network, part, source, saved["calibration"], remark, few)


def ready_fresh(
    module: torch.nn.Module,
    source: ModelChoice,
    recipe: Recipe,
    data: DataChoice,
    calibration: DataChoice | None,
    *,
    count: int,
    every: int | None,
    batch_size: int,
    batch_dim: int,
    on_failure: Failure | None,
    progress: Progress | None,
    tuned: Sequence[Mapping[str, Any]] = (),
    group: Group = ALONE,
) -> Ready:
    """`module`, as `source` names it, converted on the spot, on samples of its own or on a part of `data`."""
    few, part, remark = parts(module, data, calibration, count=count, every=every, tuned=tuned)
    network = convert_on(
        module, few, recipe, batch_size=batch_size, batch_dim=batch_dim, on_failure=on_failure, progress=progress,
        group=group,
    )  # fmt: skip
    return Ready(network, part, source.to_json(), few.record(), remark, few)


def is_saved(target: str) -> bool:
    """Whether a command-line argument names a saved network rather than a model."""
    return (Path(target) / CONFIG).is_file() and FORMAT in (Path(target) / CONFIG).read_text("utf-8", errors="replace")


__all__ = [
    "DataChoice",
    "ModelChoice",
    "Part",
    "Ready",
    "batch_at",
    "convert_each_on",
    "convert_on",
    "drawn",
    "evaluate_each_on",
    "evaluate_on",
    "inputs_of",
    "is_saved",
    "load",
    "parts",
    "read_config",
    "ready_fresh",
    "ready_saved",
    "separate",
    "tried_inputs",
    "try_model",
    "without_calibration",
]
