"""The specification of RMS normalisation, in fp64 up to the rounding before the weight."""

import torch
import torch.nn.functional as F
from torch import Tensor


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def rmsnorm(
    x: Tensor, weight: Tensor | None, *, eps: float, groups: int, gate: Tensor | None, norm_before_gate: bool
) -> Tensor:
    """See `stretto.kernels.rmsnorm.rms_norm`."""
    y = x.double()
    if gate is not None and not norm_before_gate:
        y = y * F.silu(gate.double())
    parts = []
    for part in y.chunk(groups, dim=-1):
        mean_square = (part * part).sum(-1, keepdim=True) / part.shape[-1]
        parts.append(part / torch.sqrt(mean_square + eps))
    y = torch.cat(parts, -1).to(x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype))
    if weight is not None:
        y = (weight.double() * y.double()).to(x.dtype)
    if gate is not None and norm_before_gate:
        y = (y.double() * F.silu(gate.double())).to(x.dtype)
    return y


def unit_length(x: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(sum(x^2) + eps)."""
    y = x.double()
    return (y / torch.sqrt((y * y).sum(-1, keepdim=True) + eps)).to(x.dtype)
