"""Gated linear recurrence in step form for every row (src/recurrent.cpp), recorded on the tape.

The state is read from its pool at the step's sources and left at its destinations after the definite rows. What a
replay of provisional rows needs is noted in a buffer of the head's rows, to which all of them belong, and an operation
of the tape's commit replays the accepted ones. There is no chunked form: a row has the same bits in prefill, decoding,
a draft and a replay.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef
from stretto.kernels.native.tape import ALL_ROWS, OUT_ROWS, Tape, current, why_not_here

MAX_K = 256  # of src/recurrent.cpp


class _Args(ctypes.Structure):
    _fields_ = [
        ("heads", c_int32),
        ("groups", c_int32),
        ("num_k", c_int32),
        ("num_v", c_int32),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k", c_void_p),
        ("k_stride", c_int64),
        ("v", c_void_p),
        ("v_stride", c_int64),
        ("g", c_void_p),
        ("g_stride", c_int64),
        ("beta", c_void_p),
        ("beta_stride", c_int64),
        ("o", c_void_p),
        ("o_stride", c_int64),
        ("states", c_void_p),
        ("notes", c_void_p),
        ("room", c_int32),
        ("scale", c_float),
    ]


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """fp32, at most 256 rows of state per head, and a tape must be there to record on."""
    if any(x.dtype != torch.float32 for x in (q, k, v)):
        return "it computes in fp32"
    return f"keys are longer than {MAX_K}" if k.shape[2] > MAX_K else why_not_here()


def glr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor | None,
    seqs: Seqs,
    state: Slot | None,
    scale: float,
    chunk: int,
) -> Tensor:
    """See `stretto.kernels.glr.glr`; `seqs` is a placeholder while a tape is recorded, and there are no chunks.

    Every operand is contiguous within a row. state: a `SlotRef` of fp32; of its fields, only `states` is used.
    """
    tape, (_, heads, num_v), (_, groups, num_k) = current(), v.shape, k.shape
    for x in (q, k, v):
        assert tape.rows(x).kind == ALL_ROWS and x[0].is_contiguous(), "the heads of a row lie side by side"
    for gate in (g, beta):
        assert gate is None or (gate.dtype == torch.float32 and gate[0].is_contiguous()), "gates are fp32 rows"
    o = tape.empty(ALL_ROWS, heads, num_v)
    operands = [(x.data_ptr(), x.stride(0)) if x is not None else (None, 0) for x in (q, k, v, g, beta, o)]
    args = _Args(heads, groups, num_k, num_v, *(field for operand in operands for field in operand), scale=scale)
    if state is None:
        tape.emit("glr", args)
        return o
    assert isinstance(state, SlotRef), "a recorded state lies in a pool"
    states = state.states
    assert states.dtype == torch.float32 and states.shape[1:] == (heads, num_k, num_v) and states.is_contiguous()
    args.states = states.data_ptr()
    notes = _note(tape, args)
    tape.emit("glr", args, states)
    tape.emit_commit("glr_replay", _replay(args), states, notes)
    return o


def _note(tape: Tape, args: _Args) -> Tensor:
    """[room, G K + H V + H + H]: a buffer for the keys, values, decays and betas of provisional rows."""
    notes = tape.empty(OUT_ROWS, args.groups * args.num_k + args.heads * (args.num_v + 2))
    args.notes, args.room = notes.data_ptr(), len(notes)
    return notes


def _replay(step: _Args) -> _Args:
    """The arguments of a step over its notes."""
    args = _Args.from_buffer_copy(step)
    args.k = step.notes
    args.v = args.k + 4 * step.groups * step.num_k
    args.g = args.v + 4 * step.heads * step.num_v
    args.beta = args.g + 4 * step.heads if step.beta else None
    args.k_stride = args.v_stride = args.g_stride = args.beta_stride = step.groups * step.num_k + step.heads * (
        step.num_v + 2
    )
    args.q = args.o = None
    return args
