"""Which operator means what: one table, one small file per family.

A row maps an operator overload to a rule `(node, provenance) -> Role`. To add an operator, add its row to the file of
its family; to add a family, add a file and its row in `FAMILIES`. An operator without a row that touches a signal is
UNKNOWN: the plan refuses it by name.
"""

from __future__ import annotations

import torch.fx

from ..types import Provenance, Role
from . import activation, affine, attention, lookup, multiply, normalisation, shape
from .marker import is_site, move, site
from .multiply import FACTORS, factors, replace_factor
from .rule import Rule, carries

FAMILIES = (shape, affine, multiply, activation, normalisation, attention, lookup)
RULES: dict[object, Rule] = {op: rule for family in FAMILIES for op, rule in family.RULES.items()}


def role_of(node: torch.fx.Node, provenance: dict[torch.fx.Node, Provenance]) -> Role:
    """The role of a call node: CONSTANT when no signal enters it, UNKNOWN when a signal enters and no rule exists."""
    if not any(carries(operand, provenance) for operand in node.all_input_nodes):
        return RULES[node.target](node, provenance) if node.target in lookup.RULES else Role.CONSTANT
    rule = RULES.get(node.target)
    return Role.UNKNOWN if rule is None else rule(node, provenance)


__all__ = ["FACTORS", "RULES", "carries", "factors", "is_site", "move", "replace_factor", "role_of", "site"]
