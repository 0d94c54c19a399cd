"""SpikingModel, batches -> LayerView: which site hurts, held against the source network on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from math import isfinite
from typing import Any

import torch
import torch.fx

from ._arguments import require_count
from ._count import Counter
from ._execute import run_body, run_prefix
from ._model import SpikingModel
from .energy import load_prices
from .errors import DataError
from .measure import Tally
from .measure.fidelity import LayerView, SiteReport, SiteSums
from .neurons import Neuron, advance, own_units, plain, spikes_in
from .types import Threshold


@torch.no_grad()
def diagnose(
    model: SpikingModel, batches: Iterable[Any], *, steps: int, progress: Callable[[int], None] | None = None
) -> LayerView:
    """Run source and spiking network side by side and say, site by site, what the neurons lose.

    The source activation of a site is what the same graph gives there with identity neurons on the same inputs:
    SQNR(t) = 10 log10(sum x^2 / sum (x - M_out(t))^2), over all neurons and samples.
    Arguments: batches -- model inputs (tensors, tuples, dicts), without labels. In memory: one batch's activations.
    Returns: the same numbers for any batch size, up to float64 summation, as far as the activations themselves are the
    same (floating-point kernels may differ by rounding between batch sizes).
    Raises: ConfigError for steps < 1; DataError for no samples, inputs of another shape, NaN or infinity at a site.
    """
    require_count("steps", steps)
    if not isinstance(batches, Iterable):
        raise DataError(f"batches must be an iterable of model inputs, not {type(batches).__name__}")
    sums, tally = {site.name: SiteSums(steps) for site in model.plan.sites}, Tally(steps)
    for inputs in [batches] if isinstance(batches, (torch.Tensor, Mapping)) else batches:
        tally += _watch(model, model.prepare(inputs), sums, steps)
        if progress is not None:
            progress(tally.samples)
    if tally.samples == 0:
        raise DataError("there is no sample to diagnose; pass at least one batch of model inputs")
    return _view(model, sums, tally)


def _watch(model: SpikingModel, leaves: tuple[torch.Tensor, ...], sums: Mapping[str, SiteSums], steps: int) -> Tally:
    """One batch: once with identity neurons, then step by step with the neurons; returns its counts."""
    crossing = run_prefix(model.program, leaves)
    tally = Tally(steps, samples=model.samples_in(leaves))
    counter = Counter(model.program, tally, model.layers_by_node, 1, model.recipe.product_terms)
    largest = {name: largest_levels(plain(model.neurons[name]), model.thresholds[name]) for name in sums}
    state: dict[str, torch.Tensor] = {}

    def source(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        site = str(marker.args[1])
        sums[site].begin(value)
        _require_finite(site, sums[site].signal)
        return value

    def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        site, t = str(marker.args[1]), counter.step
        after, out, trains = advance(model.neurons[site], state.get(site), t + 1, value, model.thresholds[site])
        state[site] = after
        sums[site].step(t, value, out, _is_any(own_units(model.neurons[site], trains), largest[site]))
        _require_finite(site, float(sums[site].drive[t]))
        fired = spikes_in(trains)
        neurons = _any_sample(fired != 0, marker.meta.get("batch_axis"), tally.samples)
        if neurons is not None:
            sums[site].fired(neurons)
        counter.fired(marker, fired[None], (after != 0)[None])
        return out

    run_body(model.program, crossing, source)
    for t in range(steps):
        counter.step = t
        run_body(model.program, crossing, fire, counter.after)
    return tally


def _require_finite(site: str, squares: float) -> None:
    if not isfinite(squares):
        raise DataError(f"site {site} received NaN or infinity; check the inputs, or run the model in a wider dtype")


def largest_levels(neuron: Neuron, threshold: Threshold) -> tuple[float, ...]:
    """The largest amplitude of each sign that has levels."""
    halves = (Threshold(threshold.positive, 0.0), Threshold(0.0, threshold.negative))
    ladders = (neuron.amplitudes(half) for half in halves)
    return tuple(max(ladder, key=abs) for ladder in ladders if ladder)


def _is_any(trains: list[torch.Tensor], levels: tuple[float, ...]) -> torch.Tensor:
    found = torch.zeros_like(trains[0], dtype=torch.bool)
    for emitted, level in product(trains, levels):
        # The next level is half as large: the tolerance only absorbs the rounding of `level` itself.
        found |= (emitted - level).abs_() <= 1e-5 * abs(level)
    return found


def _any_sample(fired: torch.Tensor, axis: int | None, samples: int) -> torch.Tensor | None:
    """Which neurons fired for any sample; None where the batch lies in two dimensions. A value of a model captured for
    one batch size has neurons of its own for every sample."""
    if axis == -1:
        return None
    return fired if axis is None else fired.unflatten(axis, (samples, -1)).any(axis)


def _view(model: SpikingModel, sums: Mapping[str, SiteSums], tally: Tally) -> LayerView:
    price = load_prices().pj["accumulate"] / tally.samples
    total = price * sum(int(counts.sum()) for counts in tally.operations.values())
    energy = dict.fromkeys(sums, 0.0)
    for layer in model.plan.layers:
        sites = {operand.site for operand in layer.operands if operand.site is not None}
        for site in sites:
            energy[site] += price * int(tally.operations[layer.name].sum()) / len(sites)
    rates = tally.rates()
    reports = tuple(
        SiteReport(
            name=site.name,
            kind=str(site.kind),
            neurons=tally.neurons[site.name],
            firing=tuple(rates[site.name].tolist()),
            saturation=sums[site.name].saturation,
            pinned=sums[site.name].pinned / max(sums[site.name].elements, 1),
            dead=sums[site.name].dead,
            sqnr_db=sums[site.name].sqnr_db,
            local_sqnr_db=sums[site.name].local_sqnr_db,
            energy_pj=energy[site.name],
            energy_share=energy[site.name] / total if total else 0.0,
        )
        for site in model.plan.sites
    )
    return LayerView(tally.steps, tally.samples, reports, total)
