"""RMS normalisation recorded on the tape (src/pointwise.cpp), in fp32."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.kernels.native.tape import Rows, current, why_not_here


class _NormArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("parts", c_int32),
        ("width", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("x_part_stride", c_int64),
        ("weight", c_void_p),
        ("weight_stride", c_int64),
        ("gate", c_void_p),
        ("gate_stride", c_int64),
        ("gate_mode", c_int32),
        ("eps", c_float),
        ("divisor", c_float),
        ("unused", c_int32),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on; rows or rows of heads."""
    return why_not_here() or (None if x.dim() in (2, 3) else "it takes [T, D] or [T, H, K]")


def rmsnorm(
    x: Tensor, weight: Tensor | None, *, eps: float, groups: int, gate: Tensor | None, norm_before_gate: bool
) -> Tensor:
    """See `stretto.kernels.rmsnorm.rms_norm`. [T, D], or [T, H, K] where every head is normalised by itself."""
    assert weight is None or (weight.dtype == torch.float32 and weight.is_contiguous())
    width = x.shape[-1] // groups
    y, args = _norm(x, groups, eps, float(width))
    args.weight, args.weight_stride = None if weight is None else weight.data_ptr(), width if groups > 1 else 0
    if gate is not None:
        assert gate.stride(-1) == 1 and (gate.dim() == 2 or gate.stride(1) == args.x_part_stride)
        args.gate, args.gate_stride, args.gate_mode = gate.data_ptr(), gate.stride(0), 2 if norm_before_gate else 1
    current().emit("norm", args, weight)
    return y


def unit_length(x: Tensor, *, eps: float) -> Tensor:
    """See `stretto.kernels.rmsnorm.unit_length`. [T, D], or [T, H, K] where every head gets length 1."""
    y, args = _norm(x, 1, eps, 1.0)
    current().emit("norm", args)
    return y


def _norm(x: Tensor, groups: int, eps: float, divisor: float) -> tuple[Tensor, _NormArgs]:
    """The output, and the arguments without weight and gate."""
    assert x.dtype == torch.float32 and x.stride(-1) == 1 and (groups == 1 or x.dim() == 2)
    tape, width = current(), x.shape[-1] // groups
    parts, part_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (groups, width)
    y = tape.like(x, *x.shape[1:])
    args = _NormArgs(tape.rows(x), parts, width, x.data_ptr(), x.stride(0), part_stride, eps=eps, divisor=divisor)
    args.y, args.y_stride = y.data_ptr(), y.stride(0)
    return y, args
