"""Table look-ups: where integer inputs become signals."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.fx

from ..types import Provenance, Role
from .rule import Rule

aten = torch.ops.aten


def table_row(node: torch.fx.Node, provenance: Mapping[torch.fx.Node, Provenance]) -> Role:
    """An embedding read at ids that come from the input is a weight layer with a one-hot, analog operand."""
    ids = node.args[1]
    from_input = isinstance(ids, torch.fx.Node) and provenance.get(ids) is not Provenance.CONSTANT
    return Role.WEIGHT if from_input else Role.CONSTANT


RULES: dict[object, Rule] = {aten.embedding.default: table_row}
