"""Marked graph, thresholds, batches -> frames: each neuron's own threshold and mean, of least squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.fx

from .. import ops
from .._plan import Plan
from ..neurons import Frame, Neuron, fire_once
from ..observers import MinimumError
from ..recipes import Recipe
from ..types import Site, Threshold
from .grain import dimensions, reaching

SCALES = (1.0, 2.0, 0.5, 4.0, 0.25, 0.125, 0.0625)  # the first leaves everything as it is
See = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class Fine:
    """A site whose neurons differ along some dimensions of its tensor, and what its neurons are without that."""

    neuron: Neuron
    threshold: Threshold
    along: tuple[int, ...]
    shifts: bool
    steps: int
    frame: Frame = Frame()

    def over_group(self, value: torch.Tensor) -> torch.Tensor:
        """Sums over the batch and whatever else neurons do not differ along."""
        others = [axis for axis in range(value.dim()) if axis not in self.along]
        return value.sum(others, keepdim=True, dtype=torch.float64) if others else value.double()

    def emitted(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        """Mean of what the neurons emit of a value that is held constant."""
        state, mean, drive = None, value, frame.enter(value)
        for t in range(1, self.steps + 1):
            state, mean, _ = fire_once(self.neuron, state, t, drive, self.threshold, count=False)
        return frame.leave(mean)

    def errors(self, value: torch.Tensor) -> torch.Tensor:
        """Squared errors, summed over every group, for each of SCALES."""
        frames = [Frame(scale=torch.tensor(scale, device=value.device)) for scale in SCALES]
        return torch.stack([self.over_group((self.emitted(value, frame) - value).square()) for frame in frames])

    def lacking(self, value: torch.Tensor) -> torch.Tensor:
        """What is missing from the value behind the neurons, summed over every group."""
        return self.over_group(value - self.emitted(value, self.frame))


def finer(plan: Plan, *recipes: Recipe) -> bool:
    """Whether neurons of some site differ by `MinimumError`, which takes another look at the calibration samples."""
    rules = (recipe.choice(site).range for recipe in recipes for site in plan.sites)
    return any(isinstance(rule, MinimumError) and rule.fine for rule in rules)


@torch.no_grad()
def refine(
    marked: torch.fx.GraphModule,
    plan: Plan,
    recipe: Recipe,
    thresholds: Mapping[str, Threshold],
    batches: Iterable[tuple[tuple, int]],
) -> dict[str, Fine]:
    """The sites whose rule is `MinimumError` with a granularity, given their thresholds: frames, and neurons with the
    levels that take them up to the site's largest.

    With x what a site saw of the calibration samples, N(x) the mean of what its neurons emit in `recipe.steps` steps of
    a constant x, and the means taken by group of neurons,

        scale = argmin mean (s N(x / s) - x)^2,  s of a few powers of two;    shift = mean (x - scale N(x / scale))

    s = 1 is among the scales and wins ties, and a mean is the constant of least squares, so neither stage makes the
    error of a site, or of any group in it, larger. The samples run once for each stage. There is no stage for initial
    potentials: on a constant input theta / 2 rounds to the nearest, so no other has a smaller error.
    """
    found = {site.name: fine_of(site, recipe, thresholds[site.name]) for site in plan.sites}
    sites = {name: fine for name, fine in found.items() if fine is not None}
    if not sites:
        return {}
    sites = _scaled(marked, sites, batches)
    return _shifted(marked, sites, batches)


def fine_of(site: Site, recipe: Recipe, theta: Threshold) -> Fine | None:
    """What is to be refined; None where the neurons of the site do not differ by `MinimumError`."""
    rule = recipe.choice(site).range
    if not isinstance(rule, MinimumError) or not rule.fine or not (theta.positive or theta.negative):
        return None
    return Fine(recipe.neuron_for(site), theta, dimensions(site, rule.granularity), rule.shifts, recipe.steps)


def fitted(fine: Fine, values: Sequence[torch.Tensor]) -> Fine:
    """One site, as `refine` finds it, from all it saw at once."""
    fine = _picked(fine, torch.stack([fine.errors(value) for value in values]).sum(0))
    if fine.shifts:
        lacking = torch.stack([fine.lacking(value) for value in values]).sum(0)
        count = sum(value.numel() for value in values) // lacking.numel()
        return replace(fine, frame=replace(fine.frame, shift=(lacking / count).float()))
    return fine


def _scaled(
    marked: torch.fx.GraphModule, sites: Mapping[str, Fine], batches: Iterable[tuple[tuple, int]]
) -> dict[str, Fine]:
    errors: dict[str, torch.Tensor] = {}

    def see(name: str, value: torch.Tensor) -> None:
        seen = sites[name].errors(value)
        errors[name] = errors[name] + seen if name in errors else seen

    _run(marked, sites, batches, see)
    return dict(sites) | {name: _picked(sites[name], table) for name, table in errors.items()}


def _picked(fine: Fine, errors: torch.Tensor) -> Fine:
    """With the scale of least error for every group; 1 wins ties."""
    pick = torch.where(errors[0] <= errors.min(0).values, 0, errors.argmin(0))
    if not bool(pick.any()):
        return fine
    scale = torch.tensor(SCALES, dtype=torch.bfloat16, device=pick.device)[pick]  # exact there, and least memory
    neuron, frame = reaching(fine.neuron, Frame(scale=scale))
    return replace(fine, neuron=neuron, frame=frame)


def _shifted(
    marked: torch.fx.GraphModule, sites: Mapping[str, Fine], batches: Iterable[tuple[tuple, int]]
) -> dict[str, Fine]:
    lacking: dict[str, torch.Tensor] = {}
    counts = dict.fromkeys(sites, 0)

    def see(name: str, value: torch.Tensor) -> None:
        seen = sites[name].lacking(value)
        lacking[name] = lacking[name] + seen if name in lacking else seen
        counts[name] += value.numel() // seen.numel()

    asked = {name: fine for name, fine in sites.items() if fine.shifts}
    if asked:
        _run(marked, asked, batches, see)
    found = dict(sites)
    for name, gap in lacking.items():
        found[name] = replace(sites[name], frame=replace(sites[name].frame, shift=(gap / counts[name]).float()))
    return found


def _run(
    marked: torch.fx.GraphModule, sites: Mapping[str, Fine], batches: Iterable[tuple[tuple, int]], see: See
) -> None:
    watching = Watching(marked, sites, see)
    for leaves, _ in batches:
        watching.run(*leaves)


class Watching(torch.fx.Interpreter):
    """Runs the marked graph as it is and shows the tensors of some sites."""

    def __init__(self, graph: torch.fx.GraphModule, sites: Mapping[str, Fine], see: See) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.sites, self.see = sites, see

    def call_function(self, target: object, args: tuple, kwargs: dict) -> object:
        if target is not ops.site:
            return super().call_function(target, args, kwargs)  # type: ignore[arg-type]
        value, name = args
        if name in self.sites:
            self.see(name, value)
        return value
