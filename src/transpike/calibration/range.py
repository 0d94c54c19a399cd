"""What one site saw, its choice -> its threshold, and its frame where thresholds of its neurons differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .._plan import Plan
from ..neurons import Frame
from ..observers import FixedPoint, Histogram, Largest, MinimumError, Percentile
from ..observers.rounding import round_up
from ..recipes import Recipe, SiteChoice
from ..types import Site, Threshold
from .allocate import effective_levels, least_error
from .grain import dimensions, reaching

OCTAVES = 16  # that a channel's threshold may lie below the site's


@dataclass(frozen=True)
class Range:
    threshold: Threshold
    frame: Frame | None = None
    levels: int | None = None  # where they are not the recipe's


def along(site: Site, choice: SiteChoice) -> tuple[int, ...]:
    """Along which dimensions of a site's tensor its rule sets thresholds apart."""
    rule = choice.range
    if choice.threshold is not None or not isinstance(rule, Percentile) or rule.granularity == "tensor":
        return ()
    return tuple(axis for axis in dimensions(site, rule.granularity) if site.shape[axis] is not None)


def reads_again(plan: Plan, *recipes: Recipe) -> bool:
    """Whether a recipe's thresholds need the samples a second time."""
    return any(recipe.sequential or along(site, recipe.choice(site)) for recipe in recipes for site in plan.sites)


def watcher(site: Site, choice: SiteChoice, count: int) -> Largest | None:
    """What has to see all `count` values of a site besides its histogram; None where that is enough."""
    axes = along(site, choice)
    if not axes:
        return None
    groups = math.prod(site.shape[axis] or 1 for axis in axes)
    return Largest(axes, *choice.range.ranks(count // groups))  # type: ignore[union-attr]


def range_of(site: Site, recipe: Recipe, histogram: Histogram | None, largest: Largest | None = None) -> Range:
    """The site's threshold by its rule, of the recipe's significant bits. A given one needs no histogram."""
    choice = recipe.choice(site)
    if choice.threshold is not None:
        return Range(choice.threshold)
    assert histogram is not None
    rule = choice.range
    if isinstance(rule, MinimumError):
        return Range(least_error(recipe.neuron_for(site), histogram, recipe))
    if isinstance(rule, FixedPoint):
        count = effective_levels(recipe.neuron_for(site), recipe.steps)
        return Range(_rounded(rule.at(histogram, count), recipe))
    if isinstance(rule, Percentile) and largest is not None:
        return _by_group(rule, largest, site, recipe)
    return Range(_rounded(rule.threshold(histogram), recipe))  # type: ignore[union-attr]


def _by_group(rule: Percentile, largest: Largest, site: Site, recipe: Recipe) -> Range:
    """The largest threshold, and by group the least power of two of it that is not below the group's own: there its
    ladder of levels would begin that goes down as far as the recipe says, but it also reaches up to the site's."""
    signs = [quantile.clamp(min=0.0) * rule.margin for quantile in largest.quantiles()]
    whole = _rounded(Threshold(*(float(sign.max()) for sign in signs)), recipe)
    pairs = zip(signs, (whole.positive, whole.negative), strict=True)
    share = torch.stack([own / (theta or 1.0) for own, theta in pairs]).amax(0)
    mantissa, exponent = torch.frexp(share)
    octaves = (exponent - (mantissa == 0.5).to(exponent.dtype)).where(share > 0, -OCTAVES).clamp(-OCTAVES, 0)
    if not bool(octaves.any()):
        return Range(whole)
    frame = Frame(scale=torch.exp2(octaves.float()).to(torch.bfloat16))  # exact there
    own = recipe.neuron_for(site)
    neuron, frame = reaching(own, frame)  # type: ignore[assignment]
    return Range(whole, frame, None if neuron == own else neuron.levels)


def _rounded(raw: Threshold, recipe: Recipe) -> Threshold:
    if recipe.threshold_bits is None:
        return raw
    return Threshold(*(round_up(max(theta, 0.0), recipe.threshold_bits) for theta in (raw.positive, raw.negative)))
