"""The specification of `linear`: every output in fp64, one row at a time."""

import torch
from torch import Tensor


def why_not(x: Tensor, weight: object) -> str | None:
    """Any plain tensor will do."""
    return None if isinstance(weight, Tensor) else "the weight is packed for another backend"


def linear(x_TD: Tensor, weight: Tensor, bias: Tensor | None, *, num_step_rows: int) -> Tensor:
    """x [T, D] times weight [O, D] transposed, plus bias [O], in fp64, rounded once to x.dtype."""
    rows = [(weight.double() @ row.double()) + (0.0 if bias is None else bias.double()) for row in x_TD]
    return (torch.stack(rows) if rows else x_TD.new_zeros((0, len(weight)), dtype=torch.float64)).to(x_TD.dtype)


def lookup(tokens_T: Tensor, weight: Tensor, *, scale: float) -> Tensor:
    """scale * weight[tokens] in fp64, rounded once to weight.dtype."""
    return (weight.double()[tokens_T] * scale).to(weight.dtype)
