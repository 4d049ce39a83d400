"""Gates recorded on the tape (src/pointwise.cpp): fp32, contiguous within a row."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.kernels.native.tape import Rows, current, why_not_here


class _GateArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("width", c_int32),
        ("kind", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("parameters", c_void_p),
        ("low", c_float),
        ("high", c_float),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


class _ScaleHeadsArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("heads", c_int32),
        ("width", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("s", c_void_p),
        ("s_stride", c_int64),
        ("add", c_void_p),
        ("add_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


_TIME_STEP, _DECAY, _SIGMOID = range(3)  # `kind` of src/pointwise.cpp


def why_not(x: Tensor) -> str | None:
    """fp32, and a tape must be there to record on."""
    return "it computes in fp32" if x.dtype != torch.float32 else why_not_here()


def time_step(x: Tensor, bias: Tensor, *, limit: tuple[float, float]) -> Tensor:
    """clamp(softplus(x + bias), *limit)."""
    return _gate(x, _TIME_STEP, bias, *limit)


def log_decay(dt: Tensor, A_log: Tensor) -> Tensor:
    """-dt exp(A_log)."""
    with current().outside():
        A = -A_log.exp()
    return _gate(dt, _DECAY, A)


def sigmoid_gate(x: Tensor, *, scale: float) -> Tensor:
    """scale * sigmoid(x)."""
    return _gate(x, _SIGMOID, None, scale)


def scale_heads(x: Tensor, s: Tensor, *, add: Tensor | None) -> Tensor:
    """s x (+ add)."""
    tape, (_, heads, width) = current(), x.shape
    assert x[0].is_contiguous() and (add is None or add[0].is_contiguous()), "the heads of a row lie side by side"
    assert s.dtype == torch.float32 and s.stride(-1) == 1
    y = tape.like(x, heads, width)
    args = _ScaleHeadsArgs(tape.rows(x), heads, width, x.data_ptr(), x.stride(0), s.data_ptr())
    args.s_stride = s.stride(0) if s.dim() == 2 else 0  # parameters are the same for every row
    args.add, args.add_stride = (None, 0) if add is None else (add.data_ptr(), add.stride(0))
    args.y, args.y_stride = y.data_ptr(), y.stride(0)
    tape.emit("scale_heads", args, s if s.dim() == 1 else None)
    return y


def _gate(x: Tensor, kind: int, parameters: Tensor | None, low: float = 0.0, high: float = 0.0) -> Tensor:
    tape, width = current(), x.shape[1]
    assert x.stride(1) == 1
    assert parameters is None or (parameters.dtype == torch.float32 and parameters.is_contiguous())
    y = tape.like(x, width)
    pointer = None if parameters is None else parameters.data_ptr()
    args = _GateArgs(tape.rows(x), width, kind, x.data_ptr(), x.stride(0), pointer, low, high)
    args.y, args.y_stride = y.data_ptr(), y.stride(0)
    tape.emit("gate", args, parameters)
    return y
