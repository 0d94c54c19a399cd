"""The main verb: capture, plan, calibrate, check, hand over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
import torch.fx

from . import ops
from ._capture import Captured, capture
from ._correct import as_asked, until
from ._execute import Program, batch_axis, cut, is_shared, run_body, run_prefix
from ._mark import insert_sites
from ._model import SpikingModel
from ._plan import Plan, plan
from ._substitute import notes
from .calibration import Calibration, Progress, calibrate, given
from .errors import CalibrationError, CaptureError, ConfigError, ModelError, PlanError
from .group import ALONE, Group
from .measure import per_step
from .neurons import require_wide
from .observers import Balanced
from .recipes import DEFAULT, Recipe, recipe_named
from .zoo import check_finite


def convert(
    model: torch.nn.Module,
    calibration: Iterable[Any] | Mapping[str, Any] | Calibration,
    recipe: str | Recipe = DEFAULT,
    *,
    example: Any = None,
    batch_dim: int = 0,
    max_samples: int | None = 512,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> SpikingModel:
    """Turn a pretrained module, unedited, into a spiking network without training.

    Arguments:
        model -- any module in eval mode that torch.export captures; it is not changed.
        calibration -- unlabelled model inputs in batches (tensors, tuples of positional inputs, or dicts of keyword
        inputs), of which `max_samples` samples are used; or all of `snn.calibration`, another conversion's; or
        thresholds by site name, where the recipe finds nothing but those.
        recipe -- a name from `transpike.RECIPES` or a `Recipe`.
        example -- a batch to capture with; the first calibration batch by default, required with given thresholds.
        batch_dim -- where the inputs have their batch.
        group -- processes that divide the calibration batches (`transpike.join()`); each is given all of them.
    Returns: a SpikingModel. Raises: CaptureError, PlanError, CalibrationError, CheckpointError (NaN weights),
    ConfigError, DataError; each names the module, site or tensor.
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe must be a name or a Recipe, not {type(recipe).__name__}")
    check_inputs(model, calibration)
    whole = isinstance(calibration, Calibration)
    thresholds = calibration if whole or (isinstance(calibration, Mapping) and example is not None) else None
    if whole and example is None:
        raise ConfigError("a calibration that is given needs an example batch to capture with; pass example=")
    if thresholds is None:
        if isinstance(calibration, (torch.Tensor, Mapping)):
            calibration = [calibration]
        example, calibration = peek(calibration, example)
    sited = place_sites(model, capture(model, example, batch_dim=batch_dim), recipe, example)
    if thresholds is not None:
        if recipe.correction != "none":
            raise ConfigError("a correction needs calibration samples; give thresholds in the recipe's patterns")
        if not whole:
            check_thresholds_alone(recipe, sited.plan)
        found = given(sited.plan, thresholds)  # type: ignore[arg-type]
    else:
        if recipe.correction != "none":
            calibration = list(until(sited.captured, calibration, max_samples))
        found = calibrate(
            sited.captured, sited.graph, sited.plan, recipe, calibration, max_samples=max_samples, progress=progress,
            group=group,
        )  # fmt: skip
    return as_asked(sited.network(recipe, found), calibration, max_samples)


@dataclass(frozen=True)
class Sited:
    """A captured model with its sites: what all recipes with one placement policy share."""

    model: torch.nn.Module
    captured: Captured
    plan: Plan
    graph: torch.fx.GraphModule
    example: Any

    @cached_property
    def unfoldable(self) -> str:
        return unfoldable(self.captured, self.graph, self.example)

    def network(self, recipe: Recipe, found: Calibration) -> SpikingModel:
        """The converted network. Raises ConfigError for a pattern of the recipe that matches no site."""
        check_patterns(recipe, self.plan)
        recipe = replace(recipe, site_levels={**recipe.site_levels, **found.levels})
        if recipe.operators and found.ranges:
            recipe = replace(recipe, operators=replace(recipe.operators, ranges=found.ranges))
        decided = replace(self.plan, notes=notes(self.plan, recipe))
        return SpikingModel(self.model, self.captured, self.graph, decided, recipe, found, unfoldable=self.unfoldable)


def place_sites(model: torch.nn.Module, captured: Captured, recipe: Recipe, example: Any) -> Sited:
    """Decide where the recipe's neurons go. Raises PlanError, ConfigError."""
    decided = plan(captured, recipe.policy)
    decided = replace(decided, notes=notes(decided, recipe))
    if not decided.sites:
        raise PlanError(
            "no layer of this model can spike: no linear, convolution or product reads a signal behind the first layer"
            if recipe.policy.sites == "all"
            else "no layer of this model reads an element-wise activation; use a recipe with neurons at all sites"
        )
    recipe.policy.check_patterns(decided.layers)
    check_patterns(recipe, decided)
    return Sited(model, captured, decided, insert_sites(captured, decided), example)


def check_patterns(recipe: Recipe, decided: Plan) -> None:
    unused = recipe.unused_patterns(decided.sites)
    if unused and recipe.name not in ("ecmt-code",):
        raise ConfigError(f"site pattern {unused[0]!r} matches no site; transpike inspect lists the names")


def check_thresholds_alone(recipe: Recipe, decided: Plan) -> None:
    """Raises ConfigError where the recipe's rules find more than a threshold per site."""
    for site in decided.sites:
        choice = recipe.choice(site)
        levels = isinstance(choice.range, Balanced) and site.name not in recipe.site_levels
        if choice.threshold is None and (levels or getattr(choice.range, "granularity", "tensor") != "tensor"):
            raise ConfigError(
                f"recipe {recipe.name} also finds levels or scales of the neurons of {site.name}, which thresholds "
                "alone do not give; pass all of snn.calibration, or use a recipe with one threshold per site, as ecmt"
            )


def check_inputs(model: Any, calibration: Any) -> None:
    """Raises for what is no model to convert, or no calibration data."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(calibration, (Iterable, Calibration)):
        raise CalibrationError(f"calibration must be batches or thresholds, not {type(calibration).__name__}")
    if model.training:
        raise CaptureError("the model is in training mode; call model.eval() first")
    for name, tensor in model.named_parameters():
        require_wide(tensor.dtype, f"{name} is {tensor.dtype}")
    check_finite(model)


def peek(batches: Any, example: Any) -> tuple[Any, Iterator[Any]]:
    iterator = iter(batches)
    try:
        first = next(iterator)
    except StopIteration:
        raise CalibrationError("calibration got no samples; pass at least one batch of model inputs") from None
    return (first if example is None else example), chain([first], iterator)


@torch.no_grad()
def unfoldable(captured: Captured, marked: torch.fx.GraphModule, example: Any) -> str:
    """Why time cannot be folded into the batch, or "": two different inputs run as one batch must give, at every site
    and at the output, what each gives alone."""
    if not captured.free_batch:
        return f"the model was captured for a batch of {captured.batch_size} only"
    if any(node.meta.get("batch_axis") == -1 for node in marked.graph.nodes):
        return "a tensor has its batch in two dimensions"
    program = cut(marked)
    shared = next((node for node in program.body if ops.is_site(node) and is_shared(node)), None)
    if shared is not None:
        return f"site {shared.args[1]} has no batch dimension"
    if is_shared(program.result):
        return "the output has no batch dimension"
    device = next((p.device for p in marked.parameters()), torch.device("cpu"))
    leaves = tuple(leaf.to(device) for leaf in captured.flatten(example))
    one = tuple(
        leaf if s.batch_axis is None else leaf.narrow(s.batch_axis, 0, 1)
        for s, leaf in zip(captured.inputs, leaves, strict=True)
    )
    other = tuple(
        leaf if s.batch_axis is None else _different(leaf, rows)
        for s, leaf, rows in zip(captured.inputs, one, captured.table_rows, strict=True)
    )
    if all(map(torch.equal, one, other)):
        return "the example has the same value everywhere, which cannot tell whether samples stay apart"
    both = tuple(
        a if s.batch_axis is None else torch.cat([a, b], s.batch_axis)
        for s, a, b in zip(captured.inputs, one, other, strict=True)
    )
    alone = [_fingerprints(program, inputs, 1) for inputs in (one, other)]
    together = _fingerprints(program, both, 2)
    for name, pair in together.items():
        for t in range(2):
            if not torch.allclose(pair[t], alone[t][name][0], rtol=1e-3, atol=1e-4):
                return f"at {name} the samples of a batch do not stay apart along one dimension"
    return ""


def _different(leaf: torch.Tensor, rows: int | None) -> torch.Tensor:
    """Another valid input of the same shape, also where all values are the same: ids are the next row of their table
    of `rows`; other integers and truth values, as masks hold, only change places; what is not negative stays so."""
    if not leaf.is_floating_point():
        return (leaf + 1) % rows if rows else leaf.roll(1, -1)
    seeded = torch.Generator("cpu").manual_seed(0)
    noise = torch.rand(leaf.shape, generator=seeded, device="cpu", dtype=torch.float32).to(leaf)
    size = leaf.where(leaf.abs() < 1e4, 0.0).square().mean().sqrt()  # not of what masks put in place of -Inf
    return leaf.flip(-1) * 0.75 + noise * size.where(size > 0, 1.0) / 2


def _fingerprints(program: Program, leaves: tuple[torch.Tensor, ...], parts: int) -> dict[str, torch.Tensor]:
    """Per site and part of the batch: two weighted means, so that a mix-up of elements shows."""
    prints: dict[str, torch.Tensor] = {}

    def note(name: str, node: torch.fx.Node, value: torch.Tensor) -> None:
        flat = per_step(value, parts, batch_axis(node)).flatten(1).double()
        weights = torch.linspace(0.5, 1.5, flat.shape[1], dtype=torch.float64, device=flat.device)
        size = flat.square().mean(1).sqrt() + 1e-12
        prints[name] = torch.stack([(flat * weights).mean(1) / size, size.log()], 1)

    def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        note(str(marker.args[1]), marker, value)
        return value

    note("the output", program.result, run_body(program, run_prefix(program, leaves), fire))
    return prints


__all__ = ["convert", "ops"]
