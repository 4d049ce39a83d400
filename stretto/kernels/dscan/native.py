"""Diagonal scan in step form for every row (dscan.cpp), recorded on the tape.

States are read and left as in `stretto.kernels.glr.native`: provisional rows are noted, and an operation of the tape's
commit replays the accepted ones.
"""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef
from stretto.kernels.native.buffers import ALL_ROWS, OUT_ROWS
from stretto.kernels.native.guard import require
from stretto.kernels.native.library import Fields
from stretto.kernels.native.tape import beyond, current, why_not_here


def why_not(x: Tensor, B: Tensor) -> str | None:
    """A tape must be there to record on; fp32, at most `MAX_S` states per channel."""
    why = why_not_here()
    if why is None and (x.dtype != torch.float32 or B.dtype != torch.float32):
        why = "it computes in fp32"
    return why or beyond("MAX_S", B.shape[1], "states per channel")


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
    are_rows = all(tape.kind(part) == ALL_ROWS and part.stride(1) == 1 for part in (x, dt, B, C))
    require(are_rows, "scans what does not lie row by row")
    y = tape.empty(ALL_ROWS, channels)
    with tape.outside():
        A_SF = -A_log.exp().T
    A, skip = tape.padded(A_SF), tape.padded(D[None])
    common: Fields = {"channels": channels, "num_states": num_states, "A": A, "D": skip}
    if state is None:
        tape.emit("scan", **common, x=x, dt=dt, B=B, C=C, y=y)
        return y
    assert isinstance(state, SlotRef), "a recorded state lies in a pool"
    states = state.states
    require(states.dtype == torch.float32 and states.is_contiguous(), "keeps a state that is not fp32")
    assert states.shape[1:] == (num_states, channels)
    widths = (channels, channels, num_states)  # x, dt and B of provisional rows
    notes = tape.empty(OUT_ROWS, sum(widths))
    common |= {"states": states, "notes": notes, "room": len(notes)}
    tape.emit("scan", **common, x=x, dt=dt, B=B, C=C, y=y)
    noted: Fields = dict(zip(("x", "dt", "B"), notes.split(widths, dim=1), strict=True))
    tape.emit_commit("scan_replay", **common, **noted)
    return y
