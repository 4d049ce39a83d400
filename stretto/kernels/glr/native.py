"""Gated linear recurrence in step form for every row (glr.cpp), recorded on the tape.

The state is read from its pool at the step's sources and left at its destinations after the definite rows. What a
replay of provisional rows needs is noted in a buffer of the head's rows, to which all of them belong, and an operation
of the tape's commit replays the accepted ones. There is no chunked form: a row has the same bits in prefill, decoding,
a draft and a replay.
"""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef
from stretto.kernels.native.buffers import ALL_ROWS, OUT_ROWS
from stretto.kernels.native.guard import HEADS_APART, require
from stretto.kernels.native.library import Fields
from stretto.kernels.native.tape import beyond, current, why_not_here


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """A tape must be there to record on; fp32, at most `MAX_K` rows of state per head."""
    why = why_not_here()
    if why is None and any(x.dtype != torch.float32 for x in (q, k, v)):
        why = "it computes in fp32"
    return why or beyond("MAX_K", k.shape[2], "elements of a key")


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
        require(tape.kind(x) == ALL_ROWS and x[0].is_contiguous(), HEADS_APART)
    for gate in (g, beta):
        is_row = gate is None or (gate.dtype == torch.float32 and gate[0].is_contiguous())
        require(is_row, "reads gates that are no fp32 rows")
    o = tape.empty(ALL_ROWS, heads, num_v)
    sizes: Fields = {"heads": heads, "groups": groups, "num_k": num_k, "num_v": num_v, "scale": scale}
    if state is None:
        tape.emit("glr", **sizes, q=q, k=k, v=v, g=g, beta=beta, o=o)
        return o
    assert isinstance(state, SlotRef), "a recorded state lies in a pool"
    states = state.states
    require(states.dtype == torch.float32 and states.is_contiguous(), "keeps a state that is not fp32")
    assert states.shape[1:] == (heads, num_k, num_v)
    widths = (groups * num_k, heads * num_v, heads, heads)  # k, v, g and beta of provisional rows
    notes = tape.empty(OUT_ROWS, sum(widths))
    kept: Fields = {"states": states, "notes": notes, "room": len(notes)}
    tape.emit("glr", **sizes, **kept, q=q, k=k, v=v, g=g, beta=beta, o=o)
    noted: Fields = dict(zip(("k", "v", "g", "beta"), notes.split(widths, dim=1), strict=True))
    if beta is None:
        del noted["beta"]
    tape.emit_commit("glr_replay", **sizes, **kept, **noted)
    return o
