"""Gates recorded on the tape (gates.cpp): fp32, contiguous within a row."""

import torch
from torch import Tensor

from stretto.kernels.native.guard import HEADS_APART, require
from stretto.kernels.native.tape import current, why_not_here


def why_not(x: Tensor) -> str | None:
    """fp32, and a tape must be there to record on."""
    return "it computes in fp32" if x.dtype != torch.float32 else why_not_here()


def time_step(x: Tensor, bias: Tensor, *, limit: tuple[float, float]) -> Tensor:
    """clamp(softplus(x + bias), *limit)."""
    return _gate(x, "time_step", bias, *limit)


def log_decay(dt: Tensor, A_log: Tensor) -> Tensor:
    """-dt exp(A_log)."""
    with current().outside():
        A = -A_log.exp()
    return _gate(dt, "decay", A)


def sigmoid_gate(x: Tensor, *, scale: float) -> Tensor:
    """scale * sigmoid(x)."""
    return _gate(x, "sigmoid", None, scale)


def scale_heads(x: Tensor, s: Tensor, *, add: Tensor | None) -> Tensor:
    """s x (+ add)."""
    tape, (_, heads, width) = current(), x.shape
    require(
        x[0].is_contiguous() and (add is None or add[0].is_contiguous()),
        HEADS_APART,
    )
    require(s.dtype == torch.float32 and s.stride(-1) == 1, "scales heads by what is no fp32 row")
    y = tape.like(x, heads, width)
    tape.emit("scale_heads", rows=tape.rows(x), heads=heads, width=width, x=x, s=s, add=add, y=y)
    return y


def _gate(x: Tensor, kind: str, parameters: Tensor | None, low: float = 0.0, high: float = 0.0) -> Tensor:
    tape, width = current(), x.shape[1]
    is_row = parameters is None or (parameters.dtype == torch.float32 and parameters.is_contiguous())
    require(x.stride(1) == 1 and is_row, "gates by what is no fp32 row")
    y, code = tape.like(x, width), tape.library.code("GateKind", kind)
    tape.emit("gate", rows=tape.rows(x), width=width, kind=code, x=x, parameters=parameters, low=low, high=high, y=y)
    return y
