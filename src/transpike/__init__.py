"""transpike: a pretrained Transformer, unedited, as a spiking neural network without training.

snn = transpike.convert(model, calibration=batches)
run = snn.simulate(x, steps=8)
print(run.spikes, snn.energy(run))
snn.save_pretrained("my-snn"); snn = transpike.load("my-snn")
"""

from ._capture import Captured, capture
from ._compare import RecipeComparison, compare
from ._convert import convert
from ._correct import correct
from ._diagnose import diagnose
from ._early_exit import EarlyExit, early_exit, stop_early
from ._evaluate import Evaluation, evaluate
from ._load import load
from ._model import SpikingModel
from ._plan import Plan, plan
from ._simulate import Run, simulate
from ._tune import Tuned, tune
from .calibration import Calibration
from .errors import TranspikeError
from .group import Group, join
from .measure.fidelity import LayerView, SiteReport
from .policy import Policy
from .recipes import RECIPES, Recipe, SiteChoice
from .types import Role, Site, SiteKind, Threshold

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Calibration",
    "Captured",
    "EarlyExit",
    "Evaluation",
    "Group",
    "LayerView",
    "Plan",
    "Policy",
    "Recipe",
    "RecipeComparison",
    "Role",
    "Run",
    "Site",
    "SiteChoice",
    "SiteKind",
    "SiteReport",
    "SpikingModel",
    "Threshold",
    "TranspikeError",
    "Tuned",
    "capture",
    "compare",
    "convert",
    "correct",
    "diagnose",
    "early_exit",
    "evaluate",
    "join",
    "load",
    "plan",
    "simulate",
    "stop_early",
    "tune",
]
