"""Row-wise operations through torch, on any device, differentiable."""

import torch.nn.functional as F
from torch import Tensor, add

from stretto.kernels.pointwise import silu_rows
from stretto.kernels.rowwise import Activation


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def residual_add(x: Tensor, branch: Tensor, *, scale: float) -> Tensor:
    """x + scale * branch."""
    return add(x, branch, alpha=scale)


def glu(gate: Tensor, up: Tensor, *, activation: Activation, num_step_rows: int) -> Tensor:
    """act(gate) * up."""
    if activation == "silu":
        return silu_rows(gate, num_step_rows) * up
    return F.gelu(gate, approximate="tanh") * up


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x at rows."""
    return x.index_select(0, rows)


def divided(x: Tensor, divisor: float) -> Tensor:
    """x / divisor."""
    return x / divisor
