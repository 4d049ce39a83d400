"""The specification of the gates, in fp64, rounded once."""

import torch
from torch import Tensor


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def time_step(x: Tensor, bias: Tensor, *, limit: tuple[float, float]) -> Tensor:
    """clamp(softplus(x + bias), *limit)."""
    z = x.double() + bias.double()
    return (z.clamp(min=0) + z.abs().neg().exp().log1p()).clamp(*limit).to(x.dtype)


def log_decay(dt: Tensor, A_log: Tensor) -> Tensor:
    """-dt exp(A_log)."""
    return (-dt.double() * A_log.double().exp()).to(dt.dtype)


def sigmoid_gate(x: Tensor, *, scale: float) -> Tensor:
    """scale * sigmoid(x)."""
    return (scale * torch.sigmoid(x.double())).to(x.dtype)


def scale_heads(x: Tensor, s: Tensor, *, add: Tensor | None) -> Tensor:
    """s x (+ add)."""
    y = s.double().unsqueeze(-1) * x.double()
    return (y if add is None else y + add.double()).to(x.dtype)
