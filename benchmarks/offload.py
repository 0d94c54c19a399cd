"""Peak memory of a simulation with weights in memory and on disk; prints one JSON object.

    python benchmarks/offload.py [--model vit_large_patch16_224] [--steps 4] [--folder /tmp]

Every case runs in a process of its own, on the same random weights and one image. `resting_mb`: the resident set before
the simulation less that before the model was built (Linux: VmRSS); `peak_mb`: the peak during it (VmHWM), less the
same. Pages of the memory-mapped file count in both. `outputs`: their checksum, which must be one.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import resident

CASES = (("memory", "folded"), ("disk", "folded"), ("memory", "streaming"), ("disk", "streaming"))


def trimmed() -> int:
    """The resident set without what is free in the C library's heap."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def case(name: str, steps: int, folder: str, where: str, mode: str) -> dict[str, Any]:
    import timm
    import torch

    import transpike

    torch.manual_seed(0)
    image = torch.randn(1, 3, 224, 224)
    transpike.convert(timm.create_model("vit_tiny_patch16_224", depth=1).eval(), [image], "ecmt")  # loads libraries
    before = trimmed()
    snn = transpike.convert(timm.create_model(name).eval(), [image], "ecmt")
    parameters = sum(p.numel() for p in snn.source_module.parameters())
    if where == "disk":
        snn.dispatch("disk", offload_folder=folder)
    resting = trimmed()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    started = time.process_time()
    run = snn.simulate(image, steps, mode=mode, count=False, kernel="eager", max_memory=1 << 40)
    seconds = time.process_time() - started
    return {
        "weights": where,
        "mode": mode,
        "weights_mb": round(4 * parameters / 1e6, 1),
        "resting_mb": round((resting - before) / 1e6, 1),
        "peak_mb": round((resident("VmHWM") - before) / 1e6, 1),
        "processor_seconds": round(seconds, 2),
        "outputs": hashlib.sha256(run.outputs.numpy().tobytes()).hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--folder", help="for the offloaded weights; by default a temporary one")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(case(asked.model, asked.steps, asked.folder, *asked.case.split(","))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        fixed = ["--model", asked.model, "--steps", str(asked.steps), "--folder", asked.folder or temporary]
        found = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, *fixed, "--case", ",".join(pair)],
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                ).stdout
            )
            for pair in CASES
        ]
    equal = len({row["outputs"] for row in found if row["mode"] == "folded"}) == 1
    equal &= len({row["outputs"] for row in found if row["mode"] == "streaming"}) == 1
    print(json.dumps({"model": asked.model, "steps": asked.steps, "equal": equal, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
