"""Gates of recurrent layers: what stands between a layer's projections and its recurrence.

time_step       dt = clamp(softplus(x + bias), lowest, highest)
log_decay       g = -dt exp(A_log)
sigmoid_gate    y = scale / (1 + exp(-x))
scale_heads     y = s x (+ add), one s per head, or per row and head

A row's bits do not depend on the other rows. Source: selective state spaces, arXiv 2312.00752 and 2405.21060.
"""

import math

from torch import Tensor

from stretto.kernels.pick import Impl, pick

__all__ = ["log_decay", "scale_heads", "sigmoid_gate", "time_step"]

_ORDER: tuple[Impl, ...] = ("native", "torch", "reference")
NO_LIMIT = (0.0, math.inf)


def time_step(x_TC: Tensor, bias_C: Tensor, *, limit: tuple[float, float] = NO_LIMIT, impl: Impl = "auto") -> Tensor:
    """clamp(softplus(x + bias), *limit), [T, C] in x.dtype (fp32 or wider)."""
    y: Tensor = pick("gates.time_step", _ORDER, impl, x_TC)(x_TC, bias_C, limit=limit)
    return y


def log_decay(dt_TC: Tensor, A_log_C: Tensor, *, impl: Impl = "auto") -> Tensor:
    """-dt exp(A_log), [T, C] in dt.dtype (fp32 or wider)."""
    y: Tensor = pick("gates.log_decay", _ORDER, impl, dt_TC)(dt_TC, A_log_C)
    return y


def sigmoid_gate(x_TC: Tensor, *, scale: float = 1.0, impl: Impl = "auto") -> Tensor:
    """scale * sigmoid(x), [T, C] in x.dtype (fp32 or wider)."""
    y: Tensor = pick("gates.sigmoid_gate", _ORDER, impl, x_TC)(x_TC, scale=scale)
    return y


def scale_heads(x_THV: Tensor, s: Tensor, *, add: Tensor | None = None, impl: Impl = "auto") -> Tensor:
    """s x (+ add), [T, H, V] in x.dtype (fp32 or wider). s: [H] or [T, H]; add: [T, H, V]."""
    assert s.shape in (x_THV.shape[1:2], x_THV.shape[:2]) and (add is None or add.shape == x_THV.shape)
    y: Tensor = pick("gates.scale_heads", _ORDER, impl, x_THV)(x_THV, s, add=add)
    return y
