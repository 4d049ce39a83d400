"""Activations whose bits do not depend on where a row lies.

torch evaluates `silu`, `sigmoid` and `softplus` with one formula in whole vector registers and with another in the
remainder of a loop, so in fp32 and fp64 a row changes its last bits with the number of rows before it. `exp` and
`log1p` are evaluated in one way everywhere, and sums, products and quotients are correctly rounded; the functions
below are made of these, so a decode row, the same row inside a draft and its replay agree bit for bit.

Values and gradients are those of torch's functions to rounding. Every function computes in the dtype it is given:
callers widen first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR = 80.0  # exp(80) is finite in fp32, and silu(-80) and sigmoid(-80) are below 1e-32
_LINEAR = 40.0  # softplus(x) = x in fp64 from here on


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), same shape and dtype."""
    return (1.0 + (-x).clamp(max=_FAR).exp()).reciprocal()


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), same shape and dtype."""
    x = x.clamp(min=-_FAR)
    return x / (1.0 + (-x).exp())


def silu_rows(x_TF: Tensor, num_step_rows: int) -> Tensor:
    """silu of [T, F], computed in fp32 or wider: reproducible for the leading step rows, torch's for the others."""
    if num_step_rows == 0:
        return F.silu(x_TF)
    step = silu(x_TF[:num_step_rows].to(torch.promote_types(x_TF.dtype, torch.float32))).to(x_TF.dtype)
    return step if num_step_rows == len(x_TF) else torch.cat([step, F.silu(x_TF[num_step_rows:])])


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), same shape and dtype; the identity above 40, where nothing is left to add in fp64."""
    return torch.where(x > _LINEAR, x, x.clamp(max=_LINEAR).exp().log1p())
