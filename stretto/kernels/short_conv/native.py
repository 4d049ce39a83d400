"""Short convolution row by row along ancestors (short_conv.cpp), recorded on the tape.

The tail of a sequence's inputs is read from its pool at the step's source and left at its destination after the
definite rows. Inputs of provisional rows are noted in a buffer of the head's rows, to which all of them belong, and an
operation of the tape's commit moves the tail on over the accepted ones.
"""

from typing import Literal

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef
from stretto.kernels.native.buffers import ALL_ROWS, OUT_ROWS, aligned
from stretto.kernels.native.guard import require
from stretto.kernels.native.library import Fields
from stretto.kernels.native.tape import beyond, current, why_not_here


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """A tape must be there to record on; fp32 rows, at most `MAX_WIDTH` taps."""
    why = why_not_here()
    if why is None and x.dtype != torch.float32:
        why = "it computes in fp32"
    return why or beyond("MAX_WIDTH", weight.shape[1], "taps")


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
    require(tape.kind(x) == ALL_ROWS and x.stride(1) == 1, "convolves what does not lie row by row")
    y = tape.empty(ALL_ROWS, channels)
    taps, zeros = tape.padded(weight.T), aligned((channels,), torch.float32)
    offset = None if bias is None else tape.padded(bias[None])
    common: Fields = {"channels": channels, "width": width, "silu": activation == "silu", "taps": taps, "bias": offset}
    common |= {"zeros": zeros}
    if state is None:
        tape.emit("short_conv", **common, x=x, y=y)
        return y
    assert isinstance(state, SlotRef), "a recorded state lies in a pool"
    states = state.states
    require(states.dtype == torch.float32 and states.is_contiguous(), "keeps a state that is not fp32")
    assert states.shape[1:] == (width - 1, channels)
    notes = tape.empty(OUT_ROWS, channels)
    common |= {"states": states, "notes": notes, "room": len(notes)}
    tape.emit("short_conv", **common, x=x, y=y)
    tape.emit_commit("short_conv_replay", **common, x=notes)
    return y
