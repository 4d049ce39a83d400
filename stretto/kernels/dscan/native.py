"""Diagonal scan in step form for every row (src/scan.cpp), recorded on the tape.

States are read and left as in `stretto.kernels.glr.native`: provisional rows are noted, and an operation of the tape's
commit replays the accepted ones.
"""

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef
from stretto.kernels.native.tape import ALL_ROWS, OUT_ROWS, current, why_not_here

MAX_S = 64  # of src/scan.cpp


class _Args(ctypes.Structure):
    _fields_ = [
        ("channels", c_int32),
        ("num_states", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("dt", c_void_p),
        ("dt_stride", c_int64),
        ("B", c_void_p),
        ("B_stride", c_int64),
        ("C", c_void_p),
        ("C_stride", c_int64),
        ("A", c_void_p),
        ("D", c_void_p),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("states", c_void_p),
        ("notes", c_void_p),
        ("room", c_int64),
    ]


def why_not(x: Tensor, B: Tensor) -> str | None:
    """fp32, at most 64 states per channel, and a tape must be there to record on."""
    if x.dtype != torch.float32 or B.dtype != torch.float32:
        return "it computes in fp32"
    return f"more than {MAX_S} states per channel" if B.shape[1] > MAX_S else why_not_here()


def dscan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    A_log: Tensor,
    D: Tensor,
    seqs: Seqs,
    state: Slot | None,
    chunk: int,
) -> Tensor:
    """See `stretto.kernels.dscan.dscan`; `seqs` is a placeholder while a tape is recorded, and there are no chunks.

    Every operand is contiguous within a row. state: a `SlotRef` of fp32; of its fields, only `states` is used.
    """
    tape, channels, num_states = current(), x.shape[1], B.shape[1]
    assert all(tape.rows(part).kind == ALL_ROWS and part.stride(1) == 1 for part in (x, dt, B, C))
    y = tape.empty(ALL_ROWS, channels)
    with tape.outside():
        A_SF = -A_log.exp().T
    A, skip = tape.padded(A_SF), tape.padded(D[None])
    operands = (field for part in (x, dt, B, C) for field in (part.data_ptr(), part.stride(0)))
    args = _Args(channels, num_states, *operands, A.data_ptr(), skip.data_ptr(), y.data_ptr(), y.stride(0))
    if state is None:
        tape.emit("scan", args, A, skip)
        return y
    assert isinstance(state, SlotRef), "a recorded state lies in a pool"
    states = state.states
    assert states.dtype == torch.float32 and states.shape[1:] == (num_states, channels) and states.is_contiguous()
    notes = tape.empty(OUT_ROWS, 2 * channels + num_states)  # x, dt and B of provisional rows
    args.states, args.notes, args.room = states.data_ptr(), notes.data_ptr(), len(notes)
    tape.emit("scan", args, A, skip, states)
    replay = _Args.from_buffer_copy(args)
    replay.x = notes.data_ptr()
    replay.dt = replay.x + 4 * channels
    replay.B = replay.dt + 4 * channels
    replay.x_stride = replay.dt_stride = replay.B_stride = notes.stride(0)
    replay.C = replay.y = None
    tape.emit_commit("scan_replay", replay, states, notes)
    return y
