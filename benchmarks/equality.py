"""The network in spikes against the fast simulator, for every model family of the tests and every recipe, in float64.

    python benchmarks/equality.py [NAME ...] [--steps 4] [--ties] [--recipes RECIPE ...]

Prints the Markdown table of docs/results.md: one row per family, one column per recipe; in each cell the largest
difference of the output over all steps, relative to the largest output, and how many neurons emitted something else in
some step. Thresholds are those calibrated, moved down by a random 0 to 10 %, so that no membrane lies exactly between
two levels; `--ties` leaves them as they are. Needs `pip install 'transpike[test]'`; about 6 minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import transpike
from families import FAMILIES, Family
from test_families import batch
from test_literal import without_ties
from transpike._drift import drift, widen
from transpike.measure.drift import Drift
from transpike.recipes import RECIPES


def equality(family: Family, recipe: str, *, steps: int, ties: bool) -> Drift:
    inputs = batch(family, 2)
    snn = widen(transpike.convert(family.build(), [inputs], recipe, batch_dim=family.batch_dim))
    if not ties:
        without_ties(snn)
    return drift(snn, inputs, steps=steps, check=True)[0]


def cell(drift: Drift) -> str:
    return f"{max(drift.outputs) / drift.scale:.0e}, {sum(drift.spikes):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--ties", action="store_true")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=["ecmt", "ecmt-code", "differential"])
    parser.add_argument("names", nargs="*", help="families; all by default")
    asked = parser.parse_args()
    if unknown := set(asked.names) - {family.name for family in FAMILIES}:
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in FAMILIES)}")
    torch.backends.mha.set_fastpath_enabled(False)  # eager nn.TransformerEncoder would drop padded positions
    chosen = [family for family in FAMILIES if family.name in asked.names or not asked.names]
    print(f"| family | {' | '.join(f'`{recipe}`' for recipe in asked.recipes)} | spikes compared |")
    print("|---" * (len(asked.recipes) + 2) + "|")
    worst, different, everything = 0.0, 0, 0
    for family in chosen:
        found = [equality(family, recipe, steps=asked.steps, ties=asked.ties) for recipe in asked.recipes]
        spikes = sum(sum(drift.emitted) for drift in found)
        print(f"| {family.name} | {' | '.join(map(cell, found))} | {spikes:,} |", flush=True)
        worst = max([worst, *(max(drift.outputs) / drift.scale for drift in found)])
        different, everything = different + sum(sum(drift.spikes) for drift in found), everything + spikes
    print(f"\n{len(chosen)} families, {asked.steps} steps: largest {worst:.1e}, {different:,} of {everything:,} spikes")


if __name__ == "__main__":
    main()
