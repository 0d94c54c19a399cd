"""The training-free fit: least squares for the weights, a few gradient steps for thresholds and decays."""

from __future__ import annotations

from functools import cache
from math import log

import torch

from ..errors import ConfigError
from .bank import Bank, Fit, fixed_point, outputs
from .functions import FIXED, FUNCTIONS, RANGED, Function

SAMPLES, ROUNDS, RATE = 4000, 20, 0.01


@cache
@torch.inference_mode(False)  # which a caller may have switched on: what was made under it has no derivative
def fit(function: str, bases: int, window: int, low: float, high: float) -> Fit:
    """Fit N bases to a function of FUNCTIONS on [low, high]; without randomness, so always the same on one machine.

    Each basis starts halving, with a leading threshold of its own: a code of min(x, 2 theta_j), so that N of them are a
    piecewise linear function with N knots. The knots lie at quantiles of the root of |f''|. Then ROUNDS times: weights
    and bias by least squares, one step of Adam on log theta and the three decays with the arctangent's gradient, which
    grows steeper; the best of all rounds is kept. The decays are what the paper learns; that each basis needs its own
    threshold, a bias and the closed form is known from an independent reproduction.
    Raises: ConfigError for an unknown function, or an odd number of bases where two banks share them.
    """
    if function not in FUNCTIONS:
        raise ConfigError(f"no function named {function!r} to fit; known: {', '.join(FUNCTIONS)}")
    if function in RANGED and bases % 2:
        raise ConfigError(f"{function} has two banks; give an even number of bases, not {bases}")
    exact = FUNCTIONS[function]
    x = low + (high - low) * (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    membranes = [fixed_point(part) for part in split(function, x, low, high)]
    ends = [high, low] if function in RANGED else [high]
    start = 0.0 if function in RANGED else low
    knots = [_knots(exact, start, end, bases // len(ends)) for end in ends]
    with torch.enable_grad():
        parameters, solved, error = _descend(membranes, knots, exact(x), window)
    sizes = [bank.shape[1] for bank in parameters]
    banks = tuple(Bank(p, w) for p, w in zip(parameters, solved[:-1].split(sizes), strict=True))
    return Fit(function, low, high, window, banks, float(solved[-1]), error)


def fit_inner(function: str, bases: int, window: int) -> Fit:
    """`fit` of a function of FIXED, on its range."""
    return fit(function, bases, window, *FIXED[function][1:])


def split(function: str, x: torch.Tensor, low: float, high: float) -> list[torch.Tensor]:
    """What each bank reads, between 0 and 1 in range."""
    if function in RANGED:
        return [(x / high).clamp(min=0), (x / low).clamp(min=0)]
    return [(x - low) / (high - low)]


def _knots(function: Function, start: float, end: float, count: int) -> torch.Tensor:
    """Where a piecewise linear fit from `start` to `end` bends, as parts of the way; the last is 1."""
    way = torch.linspace(0, 1, 20001, dtype=torch.float64)
    bend = function(start + (end - start) * way).diff().diff().abs().sqrt().cumsum(0)
    places = bend[-1] * torch.arange(1, count + 1, dtype=torch.float64) / count
    knots = way[torch.searchsorted(bend, places).clamp(max=len(bend) - 1) + 1]
    knots[-1] = 1.0
    return knots


def _descend(
    membranes: list[torch.Tensor], knots: list[torch.Tensor], wanted: torch.Tensor, window: int
) -> tuple[list[torch.Tensor], torch.Tensor, float]:
    """Parameters of each bank, all weights and the bias, and the error."""
    halving = log(2.0)
    parameters = [torch.stack([(at / 2).log(), *[torch.full_like(at, halving)] * 3]).requires_grad_() for at in knots]
    adam = torch.optim.Adam(parameters, lr=RATE)
    best = None
    for round_ in range(ROUNDS + 1):
        pairs = zip(membranes, parameters, strict=True)
        given = torch.cat([outputs(u, p, window, alpha=2 + round_ / 4)[0] for u, p in pairs], 1)
        solved = _least_squares(given.detach(), wanted)
        loss = (given @ solved[:-1] + solved[-1] - wanted).square().mean()
        error = float(loss.detach())
        if best is None or error < best[2]:
            best = ([p.detach().clone() for p in parameters], solved, error)
        if error == 0:
            break
        adam.zero_grad()
        (loss / loss.detach()).backward()
        adam.step()
        for group in adam.param_groups:
            group["lr"] *= 0.99
    assert best is not None
    return best


def _least_squares(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Weights, and the bias last, of least squared error."""
    columns = torch.cat([given, torch.ones_like(given[:, :1])], 1)
    columns_squared = columns.T @ columns / len(columns)
    ridge = 1e-12 * torch.eye(len(columns_squared), dtype=columns.dtype)
    return torch.linalg.solve(columns_squared + ridge, columns.T @ wanted / len(columns))
