"""Plan, recipe, batches -> Calibration: thresholds from a few unlabelled samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx

from .._capture import Captured
from .._plan import Plan
from .._substitute import ranged
from ..errors import CalibrationError, ConfigError
from ..group import ALONE, Group
from ..neurons import Frame, Neuron, framed, frames_to
from ..observers import Balanced
from ..recipes import Recipe
from ..types import Site, Threshold
from .allocate import Candidates, allocate, candidates
from .fine import refine
from .grain import Grain, frame_of, show
from .observe import Observed, Progress, granularities, observe, together
from .range import Range, range_of, watcher
from .sequential import sequential
from .settle import divergence, settle


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
    seen = observe(captured, marked, plan, [recipe], batches, max_samples=max_samples, progress=progress, group=group)
    return measured(plan, recipe, seen, marked)


def measured(plan: Plan, recipe: Recipe, seen: Observed, marked: torch.fx.GraphModule) -> Calibration:
    """The recipe's thresholds and frames, from what its sites saw. Raises CalibrationError for a site that saw nothing.

    Where thresholds are to keep a divergence, they are those with which the network has it on the calibration samples.
    """
    found = _in_common(plan, recipe, seen, marked)
    fine = {} if recipe.sequential else refine(marked, plan, recipe, found.thresholds, seen.batches)
    frames = {name: site.frame for name, site in fine.items() if site.frame.tensors()}
    own = {site.name: recipe.neuron_for(site) for site in plan.sites if site.name in frames}
    levels = {name: fine[name].neuron.levels for name in frames if fine[name].neuron != own[name]}
    return replace(found, frames={**found.frames, **frames}, levels={**found.levels, **levels}) if frames else found


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
    thresholds = {name: item.threshold for name, item in found.items()}
    frames = {name: item.frame for name, item in found.items() if item.frame is not None}
    levels = {name: item.levels for name, item in found.items() if item.levels is not None}
    balanced_sites = [site for site in plan.sites if together(choices[site.name])]
    ranges = {node: (seen.histograms[node].minimum, seen.histograms[node].maximum) for node in ranged(plan, recipe)}
    if not balanced_sites:
        return Calibration(thresholds, seen.samples, levels, frames, ranges)
    balanced = _balanced(recipe, balanced_sites, seen)
    merged = Calibration(thresholds, seen.samples, levels, frames, ranges)
    return replace(
        merged,
        thresholds={**thresholds, **balanced.thresholds},
        levels={**levels, **balanced.levels},
        frames={**frames, **balanced.frames},
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


def _balanced(recipe: Recipe, sites: list[Site], seen: Observed) -> Calibration:
    """Thresholds, levels and frames of sites whose rule is `Balanced`. One on which no prediction depends keeps its
    range."""
    heard = [s for s in sites if seen.sensitivities[s.name].information > 0 and seen.histograms[s.name].peak > 0]
    if not heard:
        raise CalibrationError("the prediction depends on no site, so thresholds cannot be balanced; use another rule")
    grains = {s.name: seen.grains[recipe.choice(s).range.granularity, s.name] for s in heard}  # type: ignore[union-attr]
    options = {s.name: _choices(recipe, s, grains[s.name], seen) for s in heard}
    picks = allocate(recipe.range, options, seen.sensitivities, seen.samples)  # type: ignore[arg-type]
    return Calibration(
        {name: options[name].thresholds[j] for name, j in picks.items()},
        seen.samples,
        {name: options[name].levels[j] for name, j in picks.items()},
        {name: frame for name, grain in grains.items() if (frame := frame_of(grain)) is not None},
    )


def _choices(recipe: Recipe, site: Site, grain: Grain, seen: Observed) -> Candidates:
    """The site's candidates, from `seen` where they are known."""
    neuron, granularity = recipe.neuron_for(site), recipe.choice(site).range.granularity  # type: ignore[union-attr]
    key = (site.name, neuron, granularity, recipe.threshold_bits, recipe.steps)
    if key not in seen.choices:
        seen.choices[key] = candidates(neuron, seen.histograms[site.name].peak, grain, recipe)
    return seen.choices[key]


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
