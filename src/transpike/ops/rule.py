"""What a rule is, and the rules that need no look at the operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.fx

from ..types import Provenance, Role

Rule = Callable[[torch.fx.Node, Mapping[torch.fx.Node, Provenance]], Role]


def carries(value: object, provenance: Mapping[torch.fx.Node, Provenance]) -> bool:
    """Whether an argument is a tensor that carries a signal."""
    return isinstance(value, torch.fx.Node) and provenance.get(value) is Provenance.SIGNAL


def always(role: Role) -> Rule:
    return lambda node, provenance: role


def argument(node: torch.fx.Node, position: int, name: str, default: object = None) -> object:
    """An argument however it was passed."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)
