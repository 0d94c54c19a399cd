"""Peak memory of a simulation, against its estimate and against T; prints one JSON object.

    python benchmarks/memory.py

Every case runs in a process of its own, on a DeiT-Tiny with random weights. `peak_mb` is the peak of the resident set
during the simulation less the resident set before it (Linux: VmHWM, reset through /proc/self/clear_refs);
`estimate_mb` is what `--max-memory` reckons with, without its fixed overhead.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# recipe, mode, T, batch, counting, neurons
CASES = (
    ("ecmt", "streaming", 2, 8, True, "eager"),
    ("ecmt", "streaming", 32, 8, True, "eager"),
    ("ecmt", "streaming", 2, 8, True, "compiled"),
    ("ecmt", "streaming", 32, 8, True, "compiled"),
    ("ecmt", "folded", 4, 8, False, "eager"),
    ("ecmt", "folded", 4, 8, True, "eager"),
    ("ecmt", "folded", 4, 32, True, "eager"),
    ("ecmt", "folded", 4, 8, False, "compiled"),
    ("ecmt", "folded", 4, 32, True, "compiled"),
    ("balanced", "streaming", 2, 8, False, "eager"),
    ("balanced", "streaming", 2, 8, True, "eager"),
    ("balanced", "streaming", 32, 8, True, "eager"),
    ("balanced", "folded", 1, 32, True, "eager"),
    ("balanced", "folded", 4, 8, False, "eager"),
    ("balanced", "folded", 4, 8, True, "eager"),
    ("balanced", "folded", 4, 32, True, "eager"),
)


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def case(recipe: str, mode: str, steps: int, batch: int, count: bool, kernel: str) -> dict[str, Any]:
    import timm
    import torch

    import transpike
    from transpike._memory import OVERHEAD, need

    torch.manual_seed(0)
    source = timm.create_model("deit_tiny_patch16_224").eval()
    images = torch.randn(batch, 3, 224, 224)
    snn = transpike.convert(source, [images[:2]], recipe)
    if kernel == "compiled":  # what compiling takes is not a run's
        snn.simulate(images[:2], steps, mode=mode, count=count, kernel=kernel)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the peak fits into what conversion left free
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    snn.simulate(images, steps, mode=mode, count=count, kernel=kernel, max_memory=1 << 40)
    measured = resident("VmHWM") - before
    fixed, each = need(snn, steps=steps, folded=mode == "folded", count=count)
    named = {"recipe": recipe, "mode": mode, "steps": steps, "batch": batch, "counting": count}
    named["neurons"] = kernel
    estimate = fixed - OVERHEAD + batch * each
    return {**named, "peak_mb": round(measured / 1e6, 1), "estimate_mb": round(estimate / 1e6, 1)}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(case(*json.loads(sys.argv[1]))))
        return
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, json.dumps(asked)], stdout=subprocess.PIPE, check=True, text=True
            ).stdout
        )
        for asked in CASES
    ]
    peaks = {(one["neurons"], one["steps"]): one["peak_mb"] for one in found[:4]}
    ratios = {kind: round(peaks[kind, 32] / peaks[kind, 2], 3) for kind in ("eager", "compiled")}
    print(json.dumps({"cases": found, "streaming_T32_over_T2": ratios}, indent=1))


if __name__ == "__main__":
    main()
