"""Named methods: a recipe is a neuron, a range rule and a placement policy, with choices by kind of site or by name.

`RECIPES` maps the names the command line takes to the functions that build recipes, one file each. To add a published
method, add its file and its row, and name every deviation in its docstring.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from .._arguments import check_arguments
from ..errors import ConfigError
from .balanced import balanced
from .cascade import cascade
from .differential import differential
from .ecmt import ecmt
from .ecmt_code import ecmt_code
from .fas import fas
from .few_spikes import few_spikes
from .mbe import mbe
from .parallel import parallel
from .qcfs import qcfs
from .recipe import CORRECTIONS, Recipe, SiteChoice

DEFAULT = "balanced"
RECIPES: dict[str, Callable[..., Recipe]] = {
    "ecmt": ecmt,
    "ecmt-code": ecmt_code,
    "differential": differential,
    "cascade": cascade,
    "balanced": balanced,
    "qcfs": qcfs,
    "few-spikes": few_spikes,
    "mbe": mbe,
    "parallel": parallel,
    "fas": fas,
}


def recipe_named(name: str, **options: Any) -> Recipe:
    """The recipe of that name with options changed.

    Raises: ConfigError, with suggestions, for a name or option there is not, and for a value the option does not take.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(f"no recipe named {name!r}; {hint}known recipes: {', '.join(RECIPES)}")
    check_arguments(RECIPES[name], options, f"recipe {name}")
    return RECIPES[name](**options)


__all__ = [
    "CORRECTIONS",
    "DEFAULT",
    "RECIPES",
    "Recipe",
    "SiteChoice",
    "ecmt",
    "ecmt_code",
    "differential",
    "cascade",
    "balanced",
    "qcfs",
    "few_spikes",
    "fas",
    "parallel",
    "mbe",
    "recipe_named",
]
