"""transpike on the benchmark's models: accuracy, spikes, the energy accounts, wall-clock; prints JSON.

python ours.py DATA_DIR [vit] [resnet20] > ours.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

import transpike
from transpike import recipes
from transpike.energy import EnergySheet

METHODS = {"ecmt": recipes.ecmt(), "differential": recipes.differential(), "balanced": recipes.balanced()}
STEPS = {"vit": 8, "resnet20": 16}
TIMED = {"vit": (1, 4, 8), "resnet20": (1, 4, 8)}


@dataclass(frozen=True)
class Batch:
    inputs: Tensor
    labels: Tensor


def run(data: Path, name: str, recipe: recipes.Recipe, source: nn.Module) -> dict[str, Any]:
    """Convert on the calibration samples, evaluate on the others, price."""
    split, steps = common.read_split(name), STEPS[name]
    calibration = (inputs for inputs, _ in common.batches(data, name, split["calibrate"]))
    snn = transpike.convert(source, calibration, recipe)
    result = transpike.evaluate(
        snn, (Batch(*pair) for pair in common.batches(data, name, split["evaluate"])), steps=steps
    )
    sheet = snn.energy_sheet(result.tally)
    by_step = result.tally.spikes_per_neuron()
    return {
        "method": recipe.name,
        "steps": steps,
        "mode": result.mode,
        "accuracy": result.score.accuracy,
        "agreement": result.score.agreement,
        "neurons": result.tally.total_neurons,
        "events_per_neuron": by_step.tolist(),
        "levels": (levels := max(neuron.levels for neuron in snn.neurons.values())),
        "bits_per_event": ceil(log2(2 * levels)),
        "accounts": accounts(sheet),
        "accumulates": sheet.paper.operations.tolist(),
        "dense_behind_spikes": sheet.paper.dense,
        "uncounted": list(sheet.uncounted),
        "seconds": seconds(data, name, source, snn),
    }


def accounts(sheet: EnergySheet) -> dict[str, dict[str, list[float]]]:
    """Energy ratio to the opponent after each step, by opponent and account."""
    found: dict[str, dict[str, list[float]]] = {}
    for item in sheet.comparisons:
        found.setdefault(item.opponent, {})[item.account] = item.ratio.tolist()
    return found


@torch.no_grad()
def seconds(data: Path, name: str, source: nn.Module, snn: transpike.SpikingModel) -> dict[str, Any]:
    """Wall-clock of one batch, without and with counting."""
    x, _ = common.read_images(data, name, common.read_split(name)["evaluate"][: common.BATCH[name]])
    return {
        f"{steps}{', counting' if count else ''}": common.timed(
            lambda: source(x), lambda steps=steps, count=count: snn.simulate(x, steps, count=count)
        )
        for steps in TIMED[name]
        for count in (False, True)
    }


@torch.no_grad()
def source_of(data: Path, name: str, source: nn.Module) -> dict[str, Any]:
    pairs = list(common.batches(data, name, common.read_split(name)["evaluate"]))
    right = sum(int((source(x).argmax(-1) == y).sum()) for x, y in pairs)
    return {**common.described(name), "accuracy": right / sum(len(y) for _, y in pairs)}


def main(data: Path, names: list[str]) -> dict[str, Any]:
    models = {}
    for name in names:
        source = common.MODELS[name](data)
        runs = []
        for recipe in METHODS.values():
            print(f"{name}: {recipe.name}", file=sys.stderr)
            runs.append(run(data, name, recipe, source))
        models[name] = {"source": source_of(data, name, source), "runs": runs}
    environment = {**common.environment(), "transpike": transpike.__version__}
    return {"tool": "transpike", "environment": environment, "models": models}


if __name__ == "__main__":
    torch.set_num_threads(common.THREADS)
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:] or list(STEPS)), indent=1))
