"""Plan, batches -> Calibration: thresholds from a few unlabelled samples, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx

from . import ops
from ._allocate import allocate, candidates
from ._capture import Captured
from ._fine import finer, refine
from ._grain import Grain, frame_of, grains, show
from ._plan import Plan
from ._range import Range, range_of, reads_again, watcher
from ._sensitivity import Sensitivity, fisher_information
from ._sequential import sequential
from ._settle import divergence, settle
from ._substitute import ranged
from .errors import CalibrationError, ConfigError
from .group import ALONE, Group
from .neurons import Frame, Neuron, framed, frames_to
from .observers import Balanced, Histogram
from .recipes import Recipe
from .types import Site, Threshold
from .zoo import weights_digest

Progress = Callable[[int], None]
Seen = tuple[tuple[torch.Tensor, ...], int]  # a batch's inputs, and how many samples


@dataclass(frozen=True)
class Calibration:
    """Thresholds by site name, and how many samples they come from (0: they were given); levels by site name where the
    rule decides them, too; frames by site name, where its neurons differ; input ranges by node of operators that are
    approximated."""

    thresholds: Mapping[str, Threshold]
    samples: int
    levels: Mapping[str, int] = field(default_factory=dict)
    frames: Mapping[str, Frame] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def place(self, plan: Plan, recipe: Recipe, device: torch.device) -> dict[str, Neuron]:
        """Every site's neuron, with its levels and in its frame."""
        frames = frames_to(self.frames, device)
        recipe = replace(recipe, site_levels={**recipe.site_levels, **self.levels})
        return {site.name: framed(recipe.neuron_for(site), frames.get(site.name)) for site in plan.sites}

    def to_json(self) -> dict[str, Any]:
        return {"samples": self.samples, "thresholds": {name: t.to_json() for name, t in self.thresholds.items()}}


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


def calibrate(
    captured: Captured,
    marked: torch.fx.GraphModule,
    plan: Plan,
    recipe: Recipe,
    batches: Iterable[Any],
    *,
    max_samples: int | None = 512,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> Calibration:
    """Watch every site on `batches` and set its threshold by the recipe's rule.

    Arguments: batches -- model inputs (tensors, tuples, dicts), unlabelled; read until `max_samples` samples are seen.
    group -- processes that divide the batches; each is given all of them, and all return the same Calibration.
    Returns: the same thresholds for any batch size or order of the same samples, as far as the activations themselves
    are the same (floating-point kernels may differ by rounding between batch sizes).
    Raises: CalibrationError for no samples, NaN or infinity, or a site that saw no data, naming it; ConfigError for
    max_samples < 1.
    """
    choices = {site.name: recipe.choice(site) for site in plan.sites}
    names = [name for name, choice in choices.items() if choice.threshold is None] + ranged(plan, recipe)
    seen = observe(
        captured, marked, plan, names, batches, max_samples=max_samples, granularities=granularities(plan, recipe),
        keep=reads_again(plan, recipe) or finer(plan, recipe), progress=progress, group=group,
    )  # fmt: skip
    return measured(plan, recipe, seen, marked)


@dataclass(frozen=True)
class Observed:
    """What every site saw of `samples` samples; and, where that was asked for, how sensitive the prediction is to it,
    what groups of its neurons saw, by (granularity, site), and the samples: enough for any recipe with these sites."""

    histograms: Mapping[str, Histogram]
    samples: int
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    grains: Mapping[tuple[str, str], Grain] = field(default_factory=dict)
    batches: Sequence[Seen] = ()


def readers_of(plan: Plan) -> dict[str, tuple[str, ...]]:
    """By site, the nodes of the layers that read it."""
    nodes = {layer.name: layer.node for layer in plan.layers}
    return {site.name: tuple(dict.fromkeys(nodes[layer] for layer, _ in site.reads)) for site in plan.sites}


def granularities(plan: Plan, *recipes: Recipe) -> frozenset[str]:
    """The granularities of rules that decide for all sites together; none where every site's decides alone."""
    choices = (recipe.choice(site) for recipe in recipes for site in plan.sites)
    return frozenset(choice.range.granularity for choice in choices if _together(choice))  # type: ignore[union-attr]


def observe(
    captured: Captured,
    marked: torch.fx.GraphModule,
    plan: Plan,
    names: Iterable[str],
    batches: Iterable[Any],
    *,
    max_samples: int | None = 512,
    granularities: Collection[str] = (),
    keep: bool = False,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> Observed:
    """Watch the sites `names` on `batches`; with `granularities` (of the function of that name) also measure the
    prediction's sensitivity and what groups of neurons see, in two more passes over the same samples, which are kept;
    `keep` keeps them for rules that read them again. Other arguments and errors as for `calibrate`."""
    if max_samples is not None and (not isinstance(max_samples, int) or max_samples < 1):
        raise ConfigError(f"max_samples must be None or a whole number of at least 1, not {max_samples!r}")
    histograms = {name: Histogram() for name in names}
    kept: list[Seen] | None = [] if granularities or keep else None
    with group.telling():
        samples = _observe(captured, Observing(marked, histograms), batches, max_samples, progress, group, kept)
        _merge(histograms, marked, samples, group)
    if samples == 0:
        raise CalibrationError("calibration got no samples; pass at least one batch of model inputs")
    if not granularities or kept is None:
        return Observed(histograms, samples, batches=kept or ())
    axes = {site.name: site.batch_axis for site in plan.sites}
    heard = fisher_information(marked, readers_of(plan), axes, kept)
    return Observed(histograms, samples, heard, grains(marked, plan.sites, heard, granularities, kept), kept)


def measured(plan: Plan, recipe: Recipe, seen: Observed, marked: torch.fx.GraphModule) -> Calibration:
    """The recipe's thresholds and frames, from what its sites saw. Raises CalibrationError for a site that saw nothing.

    Where thresholds are to keep a divergence, they are those with which the network has it on the calibration samples.
    """
    found = _in_common(plan, recipe, seen, marked)
    frames = refine(marked, plan, recipe, found.thresholds, seen.batches)
    return replace(found, frames={**found.frames, **frames}) if frames else found


def _in_common(plan: Plan, recipe: Recipe, seen: Observed, marked: torch.fx.GraphModule) -> Calibration:
    rule = recipe.range
    if not isinstance(rule, Balanced) or rule.energy is not None or not granularities(plan, recipe):
        return _measured(plan, recipe, seen, marked)

    device = next((p.device for p in marked.parameters()), torch.device("cpu"))

    def judge(found: Calibration) -> float:
        neurons = found.place(plan, recipe, device)
        return divergence(marked, (neurons, found.thresholds), seen.batches, steps=recipe.steps)

    def attempt(budget: float) -> Calibration:
        return _measured(plan, replace(recipe, range=replace(rule, divergence=budget)), seen, marked)

    return settle(rule.divergence, attempt, judge)


def _measured(plan: Plan, recipe: Recipe, seen: Observed, marked: torch.fx.GraphModule) -> Calibration:
    choices = {site.name: recipe.choice(site) for site in plan.sites}
    blind = [name for name, choice in choices.items() if choice.threshold is None and not seen.histograms[name].count]
    if blind:
        raise CalibrationError(
            f"no data reached site {', '.join(blind[:5])}; give it a threshold or keep its layer analog"
        )
    found = sequential(marked, plan, recipe, seen.batches) if recipe.sequential else _alone(plan, recipe, seen, marked)
    thresholds = {name: ranged.threshold for name, ranged in found.items()}
    frames = {name: ranged.frame for name, ranged in found.items() if ranged.frame is not None}
    together = [site for site in plan.sites if _together(choices[site.name])]
    ranges = {node: (seen.histograms[node].minimum, seen.histograms[node].maximum) for node in ranged(plan, recipe)}
    if not together:
        return Calibration(thresholds, seen.samples, frames=frames, ranges=ranges)
    balanced = _balanced(recipe, together, seen)
    return replace(
        balanced, thresholds={**thresholds, **balanced.thresholds}, frames={**frames, **balanced.frames}, ranges=ranges
    )


def _alone(plan: Plan, recipe: Recipe, seen: Observed, marked: torch.fx.GraphModule) -> dict[str, Range]:
    """Every site's range from what it saw of the source's activations."""
    histograms = seen.histograms
    fine = {
        site.name: found
        for site in plan.sites
        if site.name in histograms
        and (found := watcher(site, recipe.choice(site), histograms[site.name].count)) is not None
    }
    show(marked, {name: [largest] for name, largest in fine.items()}, seen.batches)
    return {site.name: range_of(site, recipe, histograms.get(site.name), fine.get(site.name)) for site in plan.sites}


def _together(choice: Any) -> bool:
    return choice.threshold is None and isinstance(choice.range, Balanced)


def _balanced(recipe: Recipe, sites: list[Site], seen: Observed) -> Calibration:
    """Thresholds, levels and frames of sites whose rule is `Balanced`. One on which no prediction depends keeps its
    range."""
    heard = [s for s in sites if seen.sensitivities[s.name].information > 0 and seen.histograms[s.name].peak > 0]
    if not heard:
        raise CalibrationError("the prediction depends on no site, so thresholds cannot be balanced; use another rule")
    grains = {s.name: seen.grains[recipe.choice(s).range.granularity, s.name] for s in heard}  # type: ignore[union-attr]
    options = {
        s.name: candidates(recipe.neuron_for(s), seen.histograms[s.name].peak, grains[s.name], recipe) for s in heard
    }
    picks = allocate(recipe.range, options, seen.sensitivities, seen.samples)  # type: ignore[arg-type]
    return Calibration(
        {name: options[name].thresholds[j] for name, j in picks.items()},
        seen.samples,
        {name: options[name].levels[j] for name, j in picks.items()},
        {name: frame for name, grain in grains.items() if (frame := frame_of(grain)) is not None},
    )


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


def given(plan: Plan, thresholds: Mapping[str, Any] | Calibration) -> Calibration:
    """Thresholds somebody names, one per site: a Threshold, a pair (positive, negative) or one number for both; or all
    that another conversion has found."""
    whole = thresholds if isinstance(thresholds, Calibration) else None
    thresholds = thresholds.thresholds if isinstance(thresholds, Calibration) else thresholds
    names = {site.name for site in plan.sites}
    missing, extra = sorted(names - set(thresholds)), sorted(set(thresholds) - names)
    if missing or extra:
        raise ConfigError(
            f"thresholds must name the plan's {len(names)} sites: "
            + "; ".join(
                filter(
                    None, (missing and f"missing {', '.join(missing[:5])}", extra and f"unknown {', '.join(extra[:5])}")
                )
            )
        )
    return whole or Calibration({name: as_threshold(thresholds[name], name) for name in sorted(names)}, 0)


def as_threshold(value: Any, name: str) -> Threshold:
    """A Threshold, a pair or one number for both signs. Raises ConfigError naming the site."""
    if isinstance(value, Threshold):
        return value
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    try:
        return Threshold(*pair)
    except (TypeError, ConfigError):
        raise ConfigError(f"threshold of site {name} must be one or two finite numbers, not {value!r}") from None
