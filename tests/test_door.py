"""The public door: what it names, and what opening it must not drag in."""

from __future__ import annotations

import subprocess
import sys

import transpike


def test_all_names_exist_and_nothing_else_is_public() -> None:
    assert sorted(transpike.__all__) == list(transpike.__all__) or set(transpike.__all__) <= set(dir(transpike))
    for name in transpike.__all__:
        assert getattr(transpike, name) is not None


def test_the_promised_names_are_there() -> None:
    assert {"convert", "load", "simulate", "SpikingModel", "Recipe", "RECIPES", "TranspikeError"} <= set(
        transpike.__all__
    )


def test_import_is_lean() -> None:
    heavy = ("timm", "transformers", "torchvision", "torchaudio", "datasets", "matplotlib", "sklearn", "PIL")
    code = (
        "import sys, transpike, transpike.cli, torch;"
        f"print([name for name in {heavy!r} if name in sys.modules], torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
