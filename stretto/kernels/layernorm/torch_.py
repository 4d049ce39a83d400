"""Layer normalisation through torch's fused operation, on any device, differentiable."""

import torch.nn.functional as F
from torch import Tensor


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """See `stretto.kernels.layernorm.layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
