"""The specification of layer normalisation, in fp64, rounded once."""

import torch
from torch import Tensor


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """See `stretto.kernels.layernorm.layer_norm`."""
    y = x.double()
    y = y - y.sum(-1, keepdim=True) / y.shape[-1]
    y = y / torch.sqrt((y * y).sum(-1, keepdim=True) / y.shape[-1] + eps)
    if weight is not None:
        y = y * weight.double()
    if bias is not None:
        y = y + bias.double()
    return y.to(x.dtype)
