"""Kill an evaluation with a journal at random moments (SIGKILL), let it continue, and compare with an undisturbed run.

    python benchmarks/resume.py --kills 10

Prints one JSON object; `identical` says whether the two reports are equal in all but their times and commands.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node"]


def command(processes: int, *words: str) -> list[str]:
    launcher = [] if processes == 1 else [*LAUNCH, str(processes)]
    return [sys.executable, *launcher, "-m", "transpike", *words]


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill(process: subprocess.Popen[bytes], journal: Path, more: int, delay: float) -> bool:
    """Wait for `more` new lines (0: none) and `delay` seconds, then kill all; False where the run ended before."""
    wanted = lines(journal) + more if more else 0
    while lines(journal) < wanted and process.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)  # the launcher and its processes
    process.wait()
    return True


def report(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("seconds", "command")}


def measure(kills: int, processes: int, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    chance, quiet = random.Random(seed), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    network, journal, whole, again = (folder / name for name in ("network", "journal", "whole.json", "again.json"))
    words = ["eval", str(network), "--data", "digits", "--steps", str(steps), "--batch-size", "2"]
    convert = command(1, "convert", "digits", "--calibration", "digits", "--out", str(network), "--quiet")
    subprocess.run(convert, check=True, **quiet)
    subprocess.run(command(1, *words, "--json", str(whole)), check=True, **quiet)
    resumed = [*words, "--journal", str(journal), "--json", str(again)]
    done: list[int] = []
    for _ in range(kills):
        process = subprocess.Popen(command(processes, *resumed), start_new_session=True, **quiet)
        more = 0 if chance.random() < 0.25 else chance.randint(1, 30)  # 0: while it starts, perhaps
        if not kill(process, journal, more, chance.uniform(0, 0.03) if more else chance.uniform(0, 5)):
            break
        done.append(max(lines(journal) - 1, 0))
    subprocess.run(command(processes, *resumed), check=True, **quiet)
    return {
        "kills": len(done),
        "processes": processes,
        "batches_done_at_each_kill": done,
        "batches": lines(journal) - 1,
        "samples": report(again)["samples"],
        "steps": steps,
        "accuracy": report(again)["accuracy"][-1],
        "identical": report(again) == report(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options.kills, options.processes, options.steps, options.seed, Path(folder))))


if __name__ == "__main__":
    main()
