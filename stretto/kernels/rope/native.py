"""The rotation recorded on the tape (src/pointwise.cpp): tables of all positions once, fp32 rows."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.native.tape import Rows, current, why_not_here
from stretto.kernels.rope import Rope, rope_tables


class _RopeArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("heads", c_int32),
        ("width", c_int32),
        ("half", c_int32),
        ("unused", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on."""
    return why_not_here()


def rope(x: Tensor, rope: Rope, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.rope.apply_rope`; the positions are those of the step."""
    tape, (_, heads, width) = current(), x.shape
    assert x.dtype == torch.float32 and x.stride(2) == 1 and x.stride(1) == width
    cos, sin = tape.constant(rope, lambda: rope_tables(rope, torch.arange(tape.context)))
    y = tape.like(x, heads, width)
    sizes = (heads, width, cos.shape[1], 0)
    pointers = (x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), y.stride(0))
    tape.emit("rope", _RopeArgs(tape.rows(x), *sizes, *pointers), cos, sin)
    return y
