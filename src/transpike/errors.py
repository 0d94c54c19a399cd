"""Every error transpike raises on purpose, in one tree.

    TranspikeError
    |-- InputError          what the user handed over is wrong (also a ValueError)
    |   |-- DataError       samples: empty folder, labels out of range, wrong shape, NaN
    |   |-- CheckpointError weights: missing, corrupt, another architecture, pickled, NaN
    |   |-- ConfigError     a recipe, threshold, step count or file of ours that makes no sense
    |   `-- ModelError      no model of that name, or not one we can build
    |-- CaptureError        torch.export could not turn the module into a graph
    |-- PlanError           the graph holds an operator nobody knows
    |-- CalibrationError    a site saw no data, or NaN / Inf
    |-- ProcessError        another process of the same run failed or ended
    `-- MissingExtra        an optional dependency is not installed

Each message is one sentence that names the thing (node, module path, file, shape) and the next step.
The command line prints the message and exits with code 2; it never shows a traceback for one of these.
"""

from __future__ import annotations


class TranspikeError(Exception):
    """Base of every error raised on purpose."""


class InputError(TranspikeError, ValueError):
    """What the user handed over is wrong."""


class DataError(InputError):
    """The samples are wrong: none, of the wrong shape, not finite, or with impossible labels."""


class CheckpointError(InputError):
    """The weights are wrong: missing, corrupt, of another architecture, pickled, or not finite."""


class ConfigError(InputError):
    """A configuration value or a file of ours makes no sense."""


class ModelError(InputError):
    """No model of that name, or not one that can be built."""


class CaptureError(TranspikeError):
    """torch.export could not capture the module."""


class PlanError(TranspikeError):
    """The captured graph holds an operator without a rule."""


class CalibrationError(TranspikeError):
    """A site saw no data, or data that is not finite."""


class ProcessError(TranspikeError):
    """Another process of the same run failed or ended."""


class MissingExtra(TranspikeError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed; run: pip install 'transpike[{extra}]'")


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python or of PyTorch, which on a CPU says so in words only."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)
