"""The speed table of the README from result files of models.py.

python benchmarks/models_table.py benchmarks/results/models_*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("compiled", "compiled, counting", "eager", "eager, counting", "bfloat16", "streaming", "step by step")

THEIRS = "SpikingJelly 2.0"


def rows(runs: list[dict[str, Any]]) -> list[str]:
    """Markdown rows, by model in the order measured, then threads and steps; what two tools took for the same model in
    one row. Other recipes than `ecmt` are named. SpikingJelly's column is there once it was measured, and empty where
    it does not convert."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for run in runs:
        other = "" if run.get("recipe", "ecmt") == "ecmt" else f", `{run['recipe']}`"
        for case in run["cases"]:
            found.setdefault((case["model"] + other, case["threads"], case["steps"]), {}).update(case["ratio"])
    order = list(dict.fromkeys(model for model, _, _ in found))
    columns = [*COLUMNS, *([THEIRS] if any(THEIRS in ratio for ratio in found.values()) else [])]
    head = ["| model | threads | T | " + " | ".join(columns) + " |", "|" + "---|" * (3 + len(columns))]
    return head + [
        f"| {model} | {threads} | {steps} | " + " | ".join(_cell(ratio.get(column)) for column in columns) + " |"
        for (model, threads, steps), ratio in sorted(
            found.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])
        )
    ]


def _cell(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


if __name__ == "__main__":
    print("\n".join(rows([run for name in sys.argv[1:] for run in json.loads(Path(name).read_text("utf-8"))])))
