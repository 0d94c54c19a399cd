"""Evaluation -> JSON report: the numbers, and everything needed to repeat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._evaluate import Evaluation
from .._model import SpikingModel
from .._plan import Plan
from ..energy import PriceTable
from ..measure import Agreement, Tally, interval
from .machine import versions
from .values import json_value

FORMAT = "transpike-report"
FORMAT_VERSION = 1


def document(
    model: SpikingModel,
    evaluation: Evaluation,
    *,
    command: list[str] | None = None,
    source: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    calibration_data: Mapping[str, Any] | None = None,
    seed: int | None = None,
    failed: Sequence[Mapping[str, Any]] = (),
    seconds: Mapping[str, float] | None = None,
    prices: PriceTable | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report as JSON values: shares in 0..1, drop in percentage points, lists by step (index 0 is t = 1).

    Arguments: source, data, calibration_data -- what names the weights and the samples; failed -- items that could not
    be used, each with its error; seconds -- wall-clock time by stage; prices -- of the energy sheet; more -- further
    entries.
    Returns: null for what was not measured and for what is not a finite number.
    Raises: ConfigError naming a value that JSON cannot hold.
    """
    score, tally = evaluation.score, evaluation.tally
    by_step = tally.spikes_per_neuron()
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": {**(source or {}), **_source_score(score)},
        **_scores(score),
        "spikes_per_neuron": by_step,
        "spikes_per_neuron_total": by_step.sum(),
        "samples": score.samples,
        "labelled": score.labelled,
        "steps": score.steps,
        "mode": evaluation.mode,
        "kernel": evaluation.kernel,
        "energy": evaluation.energy.to_json(),
        "energy_sheet": model.energy_sheet(tally, prices).to_json(),
        "sites": _sites(model, tally),
        "plan": _plan(model.plan),
        "recipe": model.recipe.to_json(),
        "calibration": {"samples": model.calibration.samples, "data": calibration_data},
        "data": data,
        "failed": {"count": len(failed), "items": failed},
        "command": command,
        "versions": versions(model.device),
        "seed": seed,
        "seconds": seconds,
        **(more or {}),
    }
    return json_value(content, "report")


def _source_score(score: Agreement) -> dict[str, Any]:
    accuracy = score.source_accuracy
    bounds = None if accuracy is None else interval(accuracy, score.labelled)
    return {"accuracy": accuracy, "samples": score.labelled, "interval": bounds}


def _scores(score: Agreement) -> dict[str, Any]:
    accuracy, source = score.accuracy, score.source_accuracy
    drop = None if accuracy is None or source is None else [100 * (source - share) for share in accuracy]
    return {
        "accuracy": accuracy,
        "accuracy_interval": None if accuracy is None else [interval(share, score.labelled) for share in accuracy],
        "drop": drop,
        "agreement": score.agreement,
        "agreement_interval": [interval(share, score.samples) for share in score.agreement],
    }


def _sites(model: SpikingModel, tally: Tally) -> dict[str, Any]:
    rates = tally.rates()
    return {
        site.name: {
            "kind": site.kind,
            "shape": site.shape,
            "neurons": tally.neurons.get(site.name, site.neurons),
            "levels": model.neurons[site.name].levels,
            "threshold": model.thresholds[site.name].to_json(),
            "rate": rates.get(site.name),
        }
        for site in model.plan.sites
    }


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "sites": len(plan.sites),
        "neurons": sum(site.neurons for site in plan.sites),
        "layers": len(plan.layers),
        "operators": len(plan.operators),
        "analog": [{"layer": layer.name, "reason": layer.reason} for layer in plan.layers if not layer.spiking],
        "unknown": [{"op": item.op, "module": item.module, "node": item.node} for item in plan.unknown],
    }
