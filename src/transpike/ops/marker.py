"""Marks in the graph: where a neuron goes, and where a value goes to another device."""

from __future__ import annotations

import torch
import torch.fx


def site(value: torch.Tensor, name: str) -> torch.Tensor:
    """The identity: executors that know the site `name` put a neuron here; a plain run passes the value through."""
    return value


def move(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    return value.to(device)


def is_site(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and node.target is site
