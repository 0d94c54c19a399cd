"""Sensitivity -> how far apart the thresholds of a site's neurons lie, and what each group of them saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.fx

from .. import ops
from ..neurons import Differential, FewSpikes, Frame, MultiThreshold, Neuron
from ..observers import Grouped, Largest
from ..types import Site, SiteKind
from .sensitivity import Sensitivity

MAX_LEVELS = 24
SPAN = 8  # octaves that a neuron's threshold may lie from the middle, on either side
PRODUCT = (SiteKind.QUERY, SiteKind.KEY, SiteKind.VALUE, SiteKind.SOFTMAX)


@dataclass(frozen=True)
class Grain:
    """octaves -- by neuron, how many octaves above the site's finest its levels lie (size 1 along the batch). seen --
    what the neurons of each octave saw. share -- how much of the site's information they have."""

    octaves: torch.Tensor
    seen: Grouped
    share: torch.Tensor


def dimensions(site: Site, granularity: str) -> tuple[int, ...]:
    """Along which dimensions of a site's tensor thresholds differ."""
    every = tuple(axis for axis in range(len(site.shape)) if axis != site.batch_axis)
    if granularity == "neuron":
        return every
    count = len(site.shape)
    head = (count - 3,) if site.kind in PRODUCT else ()
    chosen: tuple[int, ...]
    if granularity == "tensor":
        chosen = ()
    elif granularity == "head":
        chosen = head
    elif site.kind is SiteKind.CONV:
        chosen = (1,)
    elif site.kind is SiteKind.SOFTMAX:
        chosen = head
    else:
        chosen = (*head, count - 1)
    return tuple(axis for axis in chosen if axis in every)


def octaves(found: Sensitivity, along: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """By neuron: octaves above the finest, and its share of the information.

    The information about a neuron is taken for the product of what its position along every dimension has, which a few
    samples are enough to measure. Noise of variance v costs v times information, and one octave of threshold is four
    times the noise, so equal costs are log2(information) / 2 octaves apart; rounded, because levels are powers of two.
    """
    count = len(found.marginals)
    share = torch.ones([1] * count, dtype=torch.float64)
    apart = torch.zeros([1] * count, dtype=torch.float64)
    for axis, marginal in enumerate(found.marginals):
        relative = (marginal / marginal.mean() if axis in along else torch.ones_like(marginal)).reshape(
            [-1 if axis == other else 1 for other in range(count)]
        )
        share = share * relative
        apart = apart - relative.clamp(min=2.0**-64).log2() / 2
    steps = apart.round().clamp(-SPAN, SPAN)
    return (steps - steps.min()).to(torch.int64), share / share.sum()


def frame_of(grain: Grain) -> Frame | None:
    """None where all neurons are alike. Powers of two are exact in bfloat16, which takes least memory."""
    if not bool(grain.octaves.any()):
        return None
    return Frame(scale=torch.exp2(grain.octaves.float()).to(torch.bfloat16))


def reaching(neuron: Neuron, frame: Frame | None) -> tuple[Neuron, Frame | None]:
    """The neuron with more levels, and the frame counted from its finest neurons up, so that every neuron of the site
    reaches the site's largest level, whatever its own smallest. Samples that calibrate have not seen all that a channel
    can hold: behind GELU most of what other samples have is beyond it, and would be clipped. Only where levels are a
    ladder of powers of two, so that the site has these levels anyway."""
    ladder = isinstance(neuron, (MultiThreshold, Differential, FewSpikes)) and neuron.levels > 1
    if frame is None or frame.scale is None or not ladder:
        return neuron, frame
    down = min(1 - int(torch.frexp(frame.scale.float())[1].min()), MAX_LEVELS - neuron.levels)
    if down <= 0:
        return neuron, frame
    scale = (frame.scale.float() * 2.0**down).clamp(min=1.0).to(torch.bfloat16)
    return replace(neuron, levels=neuron.levels + down), replace(frame, scale=scale)  # type: ignore[type-var]


class Grouping(torch.fx.Interpreter):
    """Runs the marked graph as it is and shows every site's tensor to what watches its groups of neurons."""

    def __init__(self, graph: torch.fx.GraphModule, seen: Mapping[str, Sequence[Grouped | Largest]]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.seen = seen

    def call_function(self, target: object, args: tuple, kwargs: dict) -> object:
        if target is not ops.site:
            return super().call_function(target, args, kwargs)  # type: ignore[arg-type]
        value, name = args
        for grouped in self.seen.get(name, ()):
            grouped.update(value)
        return value


@torch.no_grad()
def grains(
    marked: torch.fx.GraphModule,
    sites: Iterable[Site],
    sensitivities: Mapping[str, Sensitivity],
    granularities: Iterable[str],
    batches: Iterable[tuple[tuple, int]],
) -> dict[tuple[str, str], Grain]:
    """The grain of every site, by (granularity, site). Sites on which no prediction depends have none.

    Arguments: batches -- (inputs, samples), those that gave the sensitivities; they run once more.
    """
    found: dict[tuple[str, str], Grain] = {}
    for site in sites:
        heard = sensitivities.get(site.name)
        if heard is None or not heard.information > 0:
            continue
        for granularity in granularities:
            raised, share = octaves(heard, dimensions(site, granularity))
            by_octave = torch.zeros(int(raised.max()) + 1, dtype=torch.float64)
            by_octave.index_add_(0, raised.flatten(), share.expand_as(raised).flatten())
            found[granularity, site.name] = Grain(raised, Grouped(raised), by_octave)
    seen: dict[str, list[Grouped]] = {}
    for (_, name), grain in found.items():
        seen.setdefault(name, []).append(grain.seen)
    show(marked, seen, batches)
    return found


@torch.no_grad()
def show(
    marked: torch.fx.GraphModule,
    seen: Mapping[str, Sequence[Grouped | Largest]],
    batches: Iterable[tuple[tuple, int]],
) -> None:
    """Run the batches once more for those who watch groups of neurons, by site; not where there are none."""
    if seen:
        grouping = Grouping(marked, seen)
        for leaves, _ in batches:
            grouping.run(*leaves)
