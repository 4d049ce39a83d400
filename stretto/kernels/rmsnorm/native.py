"""RMS normalisation recorded on the tape (rmsnorm.cpp), in fp32."""

import torch
from torch import Tensor

from stretto.kernels.native.guard import require
from stretto.kernels.native.tape import current, why_not_here


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on; rows or rows of heads."""
    return why_not_here() or (None if x.dim() in (2, 3) else "it takes [T, D] or [T, H, K]")


def rmsnorm(
    x: Tensor, weight: Tensor | None, *, eps: float, groups: int, gate: Tensor | None, norm_before_gate: bool
) -> Tensor:
    """See `stretto.kernels.rmsnorm.rms_norm`. [T, D], or [T, H, K] where every head is normalised by itself."""
    width = x.shape[-1] // groups
    lies_so = gate is None or (gate.stride(-1) == 1 and (gate.dim() == 2 or gate.stride(1) == x.stride(1)))
    require(lies_so, "gates a norm by what does not lie as its rows")
    mode = 0 if gate is None else 2 if norm_before_gate else 1
    return _norm(x, groups, eps, width, weight, gate, mode)


def unit_length(x: Tensor, *, eps: float) -> Tensor:
    """See `stretto.kernels.rmsnorm.unit_length`. [T, D], or [T, H, K] where every head gets length 1."""
    return _norm(x, 1, eps, 1, None, None, 0)


def _norm(
    x: Tensor, groups: int, eps: float, divisor: int, weight: Tensor | None, gate: Tensor | None, gate_mode: int
) -> Tensor:
    are_rows = x.dtype == torch.float32 and x.stride(-1) == 1 and (groups == 1 or x.dim() == 2)
    require(are_rows, "normalises what are no fp32 rows")
    is_row = weight is None or (weight.dtype == torch.float32 and weight.is_contiguous())
    require(is_row, "has a weight that is not fp32")
    tape, width = current(), x.shape[-1] // groups
    parts, part_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (groups, width)
    y = tape.like(x, *x.shape[1:])
    tape.emit(
        "norm",
        rows=tape.rows(x),
        parts=parts,
        width=width,
        x=x,
        x_part_stride=part_stride,
        weight=weight,
        weight_stride=width if groups > 1 else 0,
        gate=gate,
        gate_mode=gate_mode,
        eps=eps,
        divisor=float(divisor),
        y=y,
    )
    return y
