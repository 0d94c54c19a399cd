"""Run the first Python program of README.md and compare what it prints with the output shown under it."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?%?")
# Kernels differ in the last bits between machines, and thresholds then settle elsewhere, which moves energies by 6 %.
ACCURACY, ENERGY = 0.02, 0.1


def main() -> int:
    text = README.read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.search(r"```python\n.*?```\s+```text\n(.*?)```", text, re.DOTALL)
    if program is None or shown is None:
        print("README.md needs a ```python program followed by its ```text output")
        return 1
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(program.group(1), "README.md", "exec"), {"__name__": "__main__"})
    print(printed.getvalue())
    return compare(printed.getvalue().strip(), shown.group(1).strip())


def compare(printed: str, shown: str) -> int:
    """Same words, percentages within `ACCURACY` and other numbers within `ENERGY`."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", shown).split():
        print("the README shows another output:\n" + shown)
        return 1
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    wrong = [(a, b) for a, b in pairs if _apart(a, b) > (ACCURACY if b.endswith("%") else ENERGY)]
    if wrong:
        print(f"numbers differ from the README: {wrong[:5]}")
    return 1 if wrong else 0


def _apart(printed: str, shown: str) -> float:
    there, here = (float(number.removesuffix("%")) for number in (printed, shown))
    return abs(there - here) / max(abs(here), 1)


if __name__ == "__main__":
    sys.exit(main())
