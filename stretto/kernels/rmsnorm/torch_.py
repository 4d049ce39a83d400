"""RMS normalisation through torch's fused operation, on any device, differentiable.

The fused operation multiplies by the weight before it rounds, so it gets the weight only where nothing is rounded
(fp32 and fp64).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.kernels.pointwise import silu


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def rmsnorm(
    x: Tensor, weight: Tensor | None, *, eps: float, groups: int, gate: Tensor | None, norm_before_gate: bool
) -> Tensor:
    """See `stretto.kernels.rmsnorm.rms_norm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if gate is None and groups == 1 and x.dtype == wide and (weight is None or weight.dtype == wide):
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    y = x.to(wide)
    if gate is not None and not norm_before_gate:
        y = y * silu(gate.to(wide))
    width = x.shape[-1] // groups
    y = F.rms_norm(y.reshape(*x.shape[:-1], groups, width), (width,), None, eps).flatten(-2)
    y = y.to(x.dtype) if weight is None else (y.to(torch.promote_types(x.dtype, weight.dtype)) * weight).to(x.dtype)
    if gate is not None and norm_before_gate:
        y = (y.to(wide) * silu(gate.to(wide))).to(x.dtype)
    return y


def unit_length(x: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(sum(x^2) + eps)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
