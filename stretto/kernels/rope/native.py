"""The rotation recorded on the tape (rope.cpp): tables of all positions once, fp32 rows."""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.native.guard import HEADS_APART, require
from stretto.kernels.native.tape import current, why_not_here
from stretto.kernels.rope import Rope, rope_tables


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on."""
    return why_not_here()


def rope(x: Tensor, rope: Rope, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.rope.apply_rope`; the positions are those of the step."""
    tape, (_, heads, width) = current(), x.shape
    require(
        x.dtype == torch.float32 and x.stride(2) == 1 and x.stride(1) == width,
        HEADS_APART,
    )
    cos, sin = tape.constant(rope, lambda: rope_tables(rope, torch.arange(tape.context)))
    y = tape.like(x, heads, width)
    half = cos.shape[1]
    tape.emit("rope", rows=tape.rows(x), heads=heads, width=width, half=half, x=x, cos=cos, sin=sin, y=y)
    return y
