"""Plan, recipes, batches -> Observed: what calibration samples show of every site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from .. import ops
from .._capture import Captured
from .._plan import Plan
from .._substitute import ranged
from ..errors import CalibrationError, ConfigError
from ..group import ALONE, Group
from ..observers import Balanced, Histogram
from ..recipes import Recipe, SiteChoice
from ..zoo import weights_digest
from .fine import finer
from .grain import Grain, grains
from .range import reads_again
from .sensitivity import Sensitivity, fisher_information

Progress = Callable[[int], None]
Seen = tuple[tuple[torch.Tensor, ...], int]  # a batch's inputs, and how many samples


@dataclass(frozen=True)
class Observed:
    """What every site saw of `samples` samples; and, where that was asked for, how sensitive the prediction is to it,
    what groups of its neurons saw, by (granularity, site), and the samples: enough for any recipe with these sites.
    choices -- candidates that were run once, by what they depend on: no budget and no other recipe needs them again."""

    histograms: Mapping[str, Histogram]
    samples: int
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    grains: Mapping[tuple[str, str], Grain] = field(default_factory=dict)
    batches: Sequence[Seen] = ()
    choices: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


def observe(
    captured: Captured,
    marked: torch.fx.GraphModule,
    plan: Plan,
    recipes: Iterable[Recipe],
    batches: Iterable[Any],
    *,
    max_samples: int | None = 512,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> Observed:
    """Watch on `batches` all that sets the thresholds of `recipes`, which share the plan's sites. Where some rule needs
    more than histograms, the samples are kept and read again. Other arguments and errors as for `calibrate`."""
    if max_samples is not None and (not isinstance(max_samples, int) or max_samples < 1):
        raise ConfigError(f"max_samples must be None or a whole number of at least 1, not {max_samples!r}")
    recipes = tuple(recipes)
    histograms = {name: Histogram() for name in _names(plan, recipes)}
    wanted = granularities(plan, *recipes)
    kept: list[Seen] | None = [] if wanted or reads_again(plan, *recipes) or finer(plan, *recipes) else None
    with group.telling():
        samples = _observe(captured, Observing(marked, histograms), batches, max_samples, progress, group, kept)
        _merge(histograms, marked, samples, group)
    if samples == 0:
        raise CalibrationError("calibration got no samples; pass at least one batch of model inputs")
    if not wanted or kept is None:
        return Observed(histograms, samples, batches=kept or ())
    axes = {site.name: site.batch_axis for site in plan.sites}
    heard = fisher_information(marked, readers_of(plan), axes, kept)
    return Observed(histograms, samples, heard, grains(marked, plan.sites, heard, wanted, kept), kept)


def _names(plan: Plan, recipes: tuple[Recipe, ...]) -> list[str]:
    """The sites whose thresholds some recipe calibrates, and the operators whose ranges one needs."""
    sites = [s.name for s in plan.sites if any(recipe.choice(s).threshold is None for recipe in recipes)]
    return sites + sorted({node for recipe in recipes for node in ranged(plan, recipe)})


def granularities(plan: Plan, *recipes: Recipe) -> frozenset[str]:
    """The granularities of rules that decide for all sites together; none where every site's decides alone."""
    choices = (recipe.choice(site) for recipe in recipes for site in plan.sites)
    return frozenset(choice.range.granularity for choice in choices if together(choice))  # type: ignore[union-attr]


def together(choice: SiteChoice) -> bool:
    """Whether the site's rule decides for all sites together."""
    return choice.threshold is None and isinstance(choice.range, Balanced)


def readers_of(plan: Plan) -> dict[str, tuple[str, ...]]:
    """By site, the nodes of the layers that read it."""
    nodes = {layer.name: layer.node for layer in plan.layers}
    return {site.name: tuple(dict.fromkeys(nodes[layer] for layer, _ in site.reads)) for site in plan.sites}


class Observing(torch.fx.Interpreter):
    """Runs the marked graph as it is and shows every site's tensor, and every watched operator's input, to its
    histogram."""

    def __init__(self, graph: torch.fx.GraphModule, histograms: Mapping[str, Histogram]) -> None:
        super().__init__(graph)
        self.histograms = histograms

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.name in self.histograms and not self.histograms[n.name].update(self.env[n.all_input_nodes[0]]):
            raise CalibrationError(f"operator {n.name} saw NaN or infinity; check the inputs and the weights before it")
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is ops.site:
            value, name = args
            if name in self.histograms and not self.histograms[name].update(value):
                raise CalibrationError(f"site {name} saw NaN or infinity; check the inputs and the weights before it")
            return value
        return super().call_function(target, args, kwargs)


@torch.no_grad()
def _observe(
    captured: Captured,
    observing: Observing,
    batches: Iterable[Any],
    max_samples: int | None,
    progress: Progress | None,
    group: Group,
    kept: list[Seen] | None,
) -> int:
    """Run this process's share of the batches; returns the samples of all. `kept` gets every batch's inputs."""
    samples = 0
    if progress is not None:
        progress(samples)
    device = next((p.device for p in observing.module.parameters()), torch.device("cpu"))
    for number, batch in enumerate(batches):
        leaves = tuple(leaf.to(device) for leaf in _cut(captured, captured.flatten(batch), max_samples, samples))
        if kept is not None:
            kept.append((leaves, batch_size(captured, leaves)))
        if number % group.count == group.index:
            observing.run(*leaves)
        samples += batch_size(captured, leaves)
        if progress is not None:
            progress(samples)
        if max_samples is not None and samples >= max_samples:
            break
    return samples


def _merge(histograms: Mapping[str, Histogram], marked: torch.fx.GraphModule, samples: int, group: Group) -> None:
    """Make every histogram that of all processes. Counts are whole numbers, so the sum is what one process counts."""
    if group.count == 1:
        return
    group.require_same([weights_digest(marked), samples, list(histograms)], "weights or calibration samples")
    extremes = group.exchange([[histogram.minimum, histogram.maximum] for histogram in histograms.values()])
    for histogram, pairs in zip(histograms.values(), zip(*extremes, strict=True), strict=True):
        histogram.merge_all(pairs, group.add)


def batch_size(captured: Captured, leaves: tuple[torch.Tensor, ...]) -> int:
    for spec, leaf in zip(captured.inputs, leaves, strict=True):
        if spec.batch_axis is not None:
            return leaf.shape[spec.batch_axis]
    return 1


def _cut(
    captured: Captured, leaves: tuple[torch.Tensor, ...], max_samples: int | None, seen: int
) -> tuple[torch.Tensor, ...]:
    """The first samples of a batch that still fit under the cap, so that the cap holds whatever the batch size."""
    room = None if max_samples is None else max_samples - seen
    if room is None or not captured.free_batch or batch_size(captured, leaves) <= room:
        return leaves
    pairs = zip(captured.inputs, leaves, strict=True)
    return tuple(leaf if s.batch_axis is None else leaf.narrow(s.batch_axis, 0, room) for s, leaf in pairs)
