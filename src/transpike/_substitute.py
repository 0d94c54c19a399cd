"""Marked graph, recipe -> the marked graph with nonlinear operators replaced by their approximations.

A node keeps its name, its operands and its role; only what it calls changes, and the settings of the fit join its
keyword arguments. So whoever runs the graph, on running means or in spikes, runs the approximations.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.fx

from ._plan import Operator, Plan
from .multi_basis import RANGED, SUBSTITUTES
from .recipes import Recipe
from .types import Role


def replaced(plan: Plan, recipe: Recipe) -> list[Operator]:
    """The operators that the recipe approximates."""
    nonlinear = [item for item in plan.operators if recipe.operators and item.role is Role.NONLINEAR]
    return [item for item in nonlinear if item.op in SUBSTITUTES]


def ranged(plan: Plan, recipe: Recipe) -> list[str]:
    """The nodes among them whose input range calibration has to find."""
    return [item.node for item in replaced(plan, recipe) if item.op in RANGED]


def notes(plan: Plan, recipe: Recipe) -> tuple[str, ...]:
    """The recipe in words, and which nonlinear operators stay exact although it approximates them."""
    if recipe.operators is None:
        return recipe.lines()
    given = {item.node for item in replaced(plan, recipe)}
    kept = Counter(item.op for item in plan.operators if item.role is Role.NONLINEAR and item.node not in given)
    done = Counter(item.op for item in plan.operators if item.node in given)
    lines = (recipe.operators.line(), f"approximated: {_counted(done)}", f"kept exact, without a fit: {_counted(kept)}")
    return (*recipe.lines(), *lines)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{op} ({count})" for op, count in sorted(counter.items())) or "none"


def substituted(marked: torch.fx.GraphModule, plan: Plan, recipe: Recipe) -> torch.fx.GraphModule:
    """A copy in which the recipe's approximations are called; the graph itself where it has none.

    Raises: ConfigError for an operator whose input range is not known.
    """
    chosen = {item.node: item for item in replaced(plan, recipe)}
    if not chosen or recipe.operators is None:
        return marked
    graph, copies = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    graph.output(graph.graph_copy(marked.graph, copies))
    for node in graph.nodes:
        if node.name in chosen:
            op = chosen[node.name].op
            settings: dict[str, Any] = {"bases": recipe.operators.bases, "window": recipe.operators.window}
            if op in RANGED:
                settings["low"], settings["high"] = recipe.operators.domain(node.name)
            node.target, node.kwargs = SUBSTITUTES[op], {**node.kwargs, **settings}
    graph.lint()
    return torch.fx.GraphModule(marked, graph)
