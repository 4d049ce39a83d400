"""Row-wise operations recorded on the tape (rowwise.cpp): fp32 rows, contiguous within a row."""

import torch
from torch import Tensor

from stretto.kernels.native.buffers import OUT_ROWS
from stretto.kernels.native.guard import require
from stretto.kernels.native.tape import current, why_not_here
from stretto.kernels.native.vocabulary import binary
from stretto.kernels.rowwise import Activation


def why_not(x: Tensor) -> str | None:
    """A tape must be there to record on."""
    return why_not_here()


def residual_add(x: Tensor, branch: Tensor, *, scale: float) -> Tensor:
    """x + scale * branch."""
    tape, width = current(), x.shape[1]
    require(x.stride(1) == branch.stride(1) == 1, "adds what does not lie row by row")
    y = tape.like(x, width)
    tape.emit("residual", rows=tape.rows(x), width=width, scale=scale, x=x, branch=branch, y=y)
    return y


def glu(gate: Tensor, up: Tensor, *, activation: Activation, num_step_rows: int) -> Tensor:
    """act(gate) * up. Every row is reproducible."""
    tape, width = current(), gate.shape[1]
    require(gate.stride(1) == up.stride(1) == 1, "multiplies what does not lie row by row")
    y = tape.like(gate, width)
    act = tape.library.code("Activation", activation)
    tape.emit("glu", rows=tape.rows(gate), width=width, act=act, gate=gate, up=up, y=y)
    return y


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x at the step's `out_rows`."""
    tape, width = current(), x.shape[1]
    y = tape.empty(OUT_ROWS, width)
    tape.emit("take", width=width, x=x, y=y)
    return y


def divided(x: Tensor, divisor: float) -> Tensor:
    """x / divisor."""
    return binary(current(), "div", x, divisor)


def best(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest of the first `width` entries of every row [T] fp32 (NaN if one is NaN), and its lowest index [T]."""
    tape = current()
    values, ids = tape.like(x), tape.like(x, dtype=torch.int32)
    tape.emit("best", rows=tape.rows(x), width=width, x=x, values=values, ids=ids)
    return values, ids
