"""Evaluate with one process and with several, one thread each, in turns: wall-clock ratio, and whether they agree.

    python benchmarks/processes.py --processes 2 --pairs 3

Prints one JSON object. `evaluate` is the time of the evaluation alone, `command` that of the whole command with its
start-up (importing torch, capturing the model); `identical` says whether the reports are equal in all but times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node"]
QUIET: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def run(processes: int, words: list[str], path: Path) -> tuple[float, float, dict[str, Any]]:
    """(seconds of the evaluation, seconds of the command, the report without times)."""
    launcher = [] if processes == 1 else [*LAUNCH, str(processes)]
    started = time.perf_counter()
    subprocess.run([sys.executable, *launcher, "-m", "transpike", *words, "--json", str(path)], **QUIET)
    passed = time.perf_counter() - started
    report = json.loads(path.read_text(encoding="utf-8"))
    seconds = report.pop("seconds")["evaluate"]
    del report["command"]
    return seconds, passed, report


def measure(processes: int, pairs: int, steps: int, batch_size: int, folder: Path) -> dict[str, Any]:
    network = str(folder / "network")
    convert = ["convert", "digits", "--calibration", "digits", "--out", network, "--quiet"]
    subprocess.run([sys.executable, "-m", "transpike", *convert], **QUIET)
    words = ["eval", network, "--data", "digits", "--steps", str(steps), "--batch-size", str(batch_size)]
    one, several = [], []
    for _ in range(pairs):
        one.append(run(1, words, folder / "one.json"))
        several.append(run(processes, words, folder / "several.json"))
    alone, together = ([statistics.median(runs[i] for runs in side) for i in range(2)] for side in (one, several))
    return {
        "processes": processes,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "samples": one[0][2]["samples"],
        "steps": steps,
        "batch_size": batch_size,
        "pairs": pairs,
        "evaluate_seconds": {"1": alone[0], str(processes): together[0]},
        "evaluate_ratio": together[0] / alone[0],
        "command_seconds": {"1": alone[1], str(processes): together[1]},
        "command_ratio": together[1] / alone[1],
        "identical": all(report == one[0][2] for *_, report in one + several),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options.processes, options.pairs, options.steps, options.batch_size, Path(folder))))


if __name__ == "__main__":
    main()
