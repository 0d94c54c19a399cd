"""Banks of decaying bases: the equations, and the same as a table."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch

BITS = 16  # of a membrane: a fixed-point number between 0 and 1


@dataclass(frozen=True, eq=False)
class Bank:
    """N bases that read one membrane x in [0, 1):

        V_j[t] = theta_j exp(-a_j t);  r_j[t] = theta_j exp(-b_j t);  d_j[t] = theta_j exp(-c_j t)
        u_j[0] = x;  s_j[t] = H(u_j[t] - V_j[t]);  u_j[t+1] = u_j[t] - s_j[t] r_j[t];  o_j = sum over t of s_j[t] d_j[t]
        output = sum over j of w_j o_j

    parameters -- [4, N]: log theta, a, b, c (one step's decay over its time constant). weights -- [N].
    The three kernels share their leading amplitude theta_j: the weight scales the output, and a basis that halves
    (a = b = c = ln 2) is the successive-approximation code of min(x, 2 theta_j).
    Source: arXiv 2508.07710, equations 4 to 8; its dt_j / tau_j is one number here.
    """

    parameters: torch.Tensor
    weights: torch.Tensor

    @property
    def bases(self) -> int:
        return self.parameters.shape[1]


@dataclass(frozen=True, eq=False)
class Fit:
    """A function as bases: output = bias + the bank of x's sign on |x| / `high` or |x| / `-low` (two banks), or
    bias + the bank on (x - low) / (high - low) (one). error -- mean square on evenly spaced inputs of the range."""

    function: str
    low: float
    high: float
    window: int
    banks: tuple[Bank, ...]
    bias: float
    error: float


class _Fires(torch.autograd.Function):
    """H(x); its gradient is that of the arctangent, alpha / 2 / (1 + (pi / 2 alpha x)^2)."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: torch.Tensor, alpha: float) -> torch.Tensor:
        context.save_for_backward(x)
        context.alpha = alpha  # type: ignore[attr-defined]
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,), alpha = context.saved_tensors, context.alpha  # type: ignore[attr-defined]
        return gradient * alpha / 2 / (1 + (pi / 2 * alpha * x) ** 2), None


def outputs(
    membrane: torch.Tensor, parameters: torch.Tensor, window: int, *, alpha: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """o_j, and how often each basis fired: two tensors [M, N] for membranes [M]. Differentiable in `parameters`."""
    theta = parameters[0].exp()
    left = membrane[:, None].expand(-1, parameters.shape[1])
    given, fired = torch.zeros_like(left), torch.zeros_like(left)
    for t in range(window):
        threshold, reset, output = (theta * torch.exp(-t * rate) for rate in parameters[1:])
        # Relative to the threshold, so that late decays, whose amplitudes are small, are as steep as early ones.
        spikes = _Fires.apply(left / threshold - 1, alpha)
        left, given, fired = left - spikes * reset, given + spikes * output, fired + spikes.detach()
    return given, fired


def fixed_point(membrane: torch.Tensor) -> torch.Tensor:
    """[0, 1] cut off to BITS bits, 1 to the largest number below it."""
    return (membrane * 2**BITS).floor().clamp_(0, 2**BITS - 1) / 2**BITS


def _grid() -> torch.Tensor:
    return torch.arange(2**BITS, dtype=torch.float64) / 2**BITS


@torch.no_grad()
def table(fit: Fit) -> torch.Tensor:
    """The function for every membrane there is: [2^BITS] for each bank, float64, one after the other."""
    parts = [outputs(_grid(), bank.parameters, fit.window)[0] * bank.weights for bank in fit.banks]
    return torch.cat([part.sum(1) + fit.bias for part in parts])


@torch.no_grad()
def spike_counts(fit: Fit) -> torch.Tensor:
    """How many spikes all bases of a bank send for every membrane there is, as `table`."""
    return torch.cat([outputs(_grid(), bank.parameters, fit.window)[1].sum(1) for bank in fit.banks])
