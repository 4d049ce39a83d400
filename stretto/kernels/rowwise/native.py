"""Row-wise operations recorded on the tape (src/pointwise.cpp): fp32 rows, contiguous within a row."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.kernels.native.tape import OUT_ROWS, Rows, current, why_not_here
from stretto.kernels.rowwise import Activation

ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")
"""In the order of `activation` in src/functions.h."""


class _ResidualArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("width", c_int32),
        ("scale", c_float),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("branch", c_void_p),
        ("branch_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


class _GluArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("width", c_int32),
        ("act", c_int32),
        ("gate", c_void_p),
        ("gate_stride", c_int64),
        ("up", c_void_p),
        ("up_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


class _TakeArgs(ctypes.Structure):
    _fields_ = [
        ("width", c_int32),
        ("unused", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


class _DivideArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("width", c_int32),
        ("divisor", c_float),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


class _BestArgs(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("width", c_int32),
        ("unused", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("values", c_void_p),
        ("ids", c_void_p),
    ]


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on."""
    return why_not_here()


def residual_add(x: Tensor, branch: Tensor, *, scale: float) -> Tensor:
    """x + scale * branch."""
    tape, width = current(), x.shape[1]
    assert x.stride(1) == branch.stride(1) == 1
    y = tape.like(x, width)
    sources = (x.data_ptr(), x.stride(0), branch.data_ptr(), branch.stride(0))
    tape.emit("residual", _ResidualArgs(tape.rows(x), width, scale, *sources, y.data_ptr(), y.stride(0)))
    return y


def glu(gate: Tensor, up: Tensor, *, activation: Activation, num_step_rows: int) -> Tensor:
    """act(gate) * up. Every row is reproducible."""
    tape, width = current(), gate.shape[1]
    assert gate.stride(1) == up.stride(1) == 1
    y = tape.like(gate, width)
    act = ACTIVATIONS.index(activation)
    sources = (gate.data_ptr(), gate.stride(0), up.data_ptr(), up.stride(0))
    tape.emit("glu", _GluArgs(tape.rows(gate), width, act, *sources, y.data_ptr(), y.stride(0)))
    return y


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x at the step's `out_rows`."""
    tape, width = current(), x.shape[1]
    y = tape.empty(OUT_ROWS, width)
    tape.emit("take", _TakeArgs(width, 0, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0)))
    return y


def divided(x: Tensor, divisor: float) -> Tensor:
    """x / divisor."""
    tape, width = current(), x.shape[1]
    y = tape.like(x, width)
    pointers = (x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0))
    tape.emit("divide", _DivideArgs(tape.rows(x), width, divisor, *pointers))
    return y


def best(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest of the first `width` entries of every row [T] fp32 (NaN if one is NaN), and its lowest index [T]."""
    tape = current()
    values, ids = tape.like(x), tape.like(x, dtype=torch.int32)
    tape.emit("best", _BestArgs(tape.rows(x), width, 0, x.data_ptr(), x.stride(0), values.data_ptr(), ids.data_ptr()))
    return values, ids
