"""Layer normalisation recorded on the tape (layernorm.cpp), in fp32."""

import torch
from torch import Tensor

from stretto.kernels.native.guard import require
from stretto.kernels.native.tape import current, why_not_here


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on; rows or rows of heads."""
    return why_not_here() or (None if x.dim() in (2, 3) else "it takes [T, D] or [T, H, K]")


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """See `stretto.kernels.layernorm.layer_norm`. [T, D], or [T, H, K] where every head is normalised by itself."""
    require(x.dtype == torch.float32 and x.stride(-1) == 1, "normalises what are no fp32 rows")
    for vector in (weight, bias):
        is_row = vector is None or (vector.dtype == torch.float32 and vector.is_contiguous())
        require(is_row, "has a weight or bias that is not fp32")
    tape = current()
    parts, part_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, x.shape[1])
    y = tape.like(x, *x.shape[1:])
    tape.emit(
        "layer_norm",
        rows=tape.rows(x),
        parts=parts,
        width=x.shape[-1],
        x=x,
        x_part_stride=part_stride,
        weight=weight,
        bias=bias,
        eps=eps,
        y=y,
    )
    return y
