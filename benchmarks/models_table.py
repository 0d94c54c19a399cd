"""The speed table of the README from result files of models.py.

python benchmarks/models_table.py benchmarks/results/models_*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("compiled", "compiled, counting", "eager", "eager, counting", "bfloat16", "streaming", "step by step")


def rows(runs: list[dict[str, Any]]) -> list[str]:
    """Markdown rows, by model in the order measured, then threads and steps."""
    cases = [case for run in runs for case in run["cases"]]
    order = list(dict.fromkeys(case["model"] for case in cases))
    cases.sort(key=lambda case: (order.index(case["model"]), case["threads"], case["steps"]))
    head = ["| model | threads | T | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (3 + len(COLUMNS))]
    return head + [
        f"| {case['model']} | {case['threads']} | {case['steps']} | "
        + " | ".join(_cell(case["ratio"].get(column)) for column in COLUMNS)
        + " |"
        for case in cases
    ]


def _cell(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


if __name__ == "__main__":
    print("\n".join(rows([run for name in sys.argv[1:] for run in json.loads(Path(name).read_text("utf-8"))])))
