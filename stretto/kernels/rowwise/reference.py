"""The specification of the row-wise operations, in fp64, rounded once."""

import math

import torch
from torch import Tensor

from stretto.kernels.rowwise import Activation


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def residual_add(x: Tensor, branch: Tensor, *, scale: float) -> Tensor:
    """x + scale * branch."""
    return (x.double() + scale * branch.double()).to(x.dtype)


def glu(gate: Tensor, up: Tensor, *, activation: Activation, num_step_rows: int) -> Tensor:
    """act(gate) * up."""
    g = gate.double()
    if activation == "silu":
        act = g / (1.0 + (-g).exp())
    else:
        act = 0.5 * g * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (g + 0.044715 * g**3)))
    return (act * up.double()).to(gate.dtype)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x at rows."""
    return torch.stack([x[row] for row in rows.tolist()]) if len(rows) else x[:0]


def divided(x: Tensor, divisor: float) -> Tensor:
    """x / divisor."""
    return (x.double() / divisor).to(x.dtype)
