"""Short convolution row by row along ancestors (src/short_conv.cpp), recorded on the tape.

The tail of a sequence's inputs is read from its pool at the step's source and left at its destination after the
definite rows. Inputs of provisional rows are noted in a buffer of the head's rows, to which all of them belong, and an
operation of the tape's commit moves the tail on over the accepted ones.
"""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from typing import Literal

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef
from stretto.kernels.native.tape import ALL_ROWS, OUT_ROWS, aligned, current, why_not_here

MAX_WIDTH = 16  # of src/short_conv.cpp


class _Args(ctypes.Structure):
    _fields_ = [
        ("channels", c_int32),
        ("width", c_int32),
        ("silu", c_int32),
        ("unused", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("taps", c_void_p),
        ("bias", c_void_p),
        ("zeros", c_void_p),
        ("states", c_void_p),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("notes", c_void_p),
        ("room", c_int64),
    ]


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """fp32 rows, at most 16 taps, and a tape must be there to record on."""
    if x.dtype != torch.float32:
        return "it computes in fp32"
    return f"more than {MAX_WIDTH} taps" if weight.shape[1] > MAX_WIDTH else why_not_here()


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    seqs: Seqs,
    state: Slot | None,
    activation: Literal["silu"] | None,
) -> Tensor:
    """See `stretto.kernels.short_conv.short_conv`; `seqs` is a placeholder while a tape is recorded.

    x is contiguous within a row. state: a `SlotRef` of fp32; of its fields, only `states` is used.
    """
    tape, (channels, width) = current(), weight.shape
    assert tape.rows(x).kind == ALL_ROWS and x.stride(1) == 1
    y = tape.empty(ALL_ROWS, channels)
    taps, zeros = tape.padded(weight.T), aligned((channels,), torch.float32)
    offset = None if bias is None else tape.padded(bias[None])
    args = _Args(channels, width, activation == "silu", 0, x.data_ptr(), x.stride(0), taps.data_ptr())
    args.bias, args.zeros = None if offset is None else offset.data_ptr(), zeros.data_ptr()
    args.y, args.y_stride = y.data_ptr(), y.stride(0)
    if state is None:
        tape.emit("short_conv", args, taps, offset, zeros)
        return y
    assert isinstance(state, SlotRef), "a recorded state lies in a pool"
    states = state.states
    assert states.dtype == torch.float32 and states.shape[1:] == (width - 1, channels) and states.is_contiguous()
    notes = tape.empty(OUT_ROWS, channels)
    args.states, args.notes, args.room = states.data_ptr(), notes.data_ptr(), len(notes)
    tape.emit("short_conv", args, taps, offset, zeros, states)
    replay = _Args.from_buffer_copy(args)
    replay.x, replay.x_stride = notes.data_ptr(), notes.stride(0)
    tape.emit_commit("short_conv_replay", replay, states, notes)
    return y
