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

# recipe, mode, T, batch, counting
CASES = (
    ("ecmt", "streaming", 2, 8, True),
    ("ecmt", "streaming", 32, 8, True),
    ("ecmt", "folded", 4, 8, False),
    ("ecmt", "folded", 4, 8, True),
    ("ecmt", "folded", 4, 32, True),
    ("balanced", "streaming", 2, 8, False),
    ("balanced", "streaming", 2, 8, True),
    ("balanced", "streaming", 32, 8, True),
    ("balanced", "folded", 1, 32, True),
    ("balanced", "folded", 4, 8, False),
    ("balanced", "folded", 4, 8, True),
    ("balanced", "folded", 4, 32, True),
)


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def case(recipe: str, mode: str, steps: int, batch: int, count: bool) -> dict[str, Any]:
    import timm
    import torch

    import transpike
    from transpike._memory import OVERHEAD, need

    torch.manual_seed(0)
    source = timm.create_model("deit_tiny_patch16_224").eval()
    images = torch.randn(batch, 3, 224, 224)
    snn = transpike.convert(source, [images[:2]], recipe)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the peak fits into what conversion left free
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    snn.simulate(images, steps, mode=mode, count=count, kernel="eager", max_memory=1 << 40)
    measured = resident("VmHWM") - before
    fixed, each = need(snn, steps=steps, folded=mode == "folded", count=count)
    named = {"recipe": recipe, "mode": mode, "steps": steps, "batch": batch, "counting": count}
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
    ratio = found[1]["peak_mb"] / found[0]["peak_mb"]
    print(json.dumps({"cases": found, "streaming_T32_over_T2": round(ratio, 3)}, indent=1))


if __name__ == "__main__":
    main()
