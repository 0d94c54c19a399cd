"""The mark a plan leaves in the graph where a neuron goes."""

from __future__ import annotations

import torch
import torch.fx


def site(value: torch.Tensor, name: str) -> torch.Tensor:
    """The identity: executors that know the site `name` put a neuron here; a plain run passes the value through."""
    return value


def is_site(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and node.target is site
