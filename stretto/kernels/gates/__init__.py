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


def time_step(x_TF: Tensor, bias_F: Tensor, *, limit: tuple[float, float] = NO_LIMIT, impl: Impl = "auto") -> Tensor:
    """clamp(softplus(x + bias), *limit), [T, F] in x.dtype (fp32 or wider)."""
    y: Tensor = pick("gates.time_step", _ORDER, impl, x_TF)(x_TF, bias_F, limit=limit)
    return y


def log_decay(dt_TF: Tensor, A_log_F: Tensor, *, impl: Impl = "auto") -> Tensor:
    """-dt exp(A_log), [T, F] in dt.dtype (fp32 or wider)."""
    y: Tensor = pick("gates.log_decay", _ORDER, impl, dt_TF)(dt_TF, A_log_F)
    return y


def sigmoid_gate(x_TF: Tensor, *, scale: float = 1.0, impl: Impl = "auto") -> Tensor:
    """scale * sigmoid(x), [T, F] in x.dtype (fp32 or wider)."""
    y: Tensor = pick("gates.sigmoid_gate", _ORDER, impl, x_TF)(x_TF, scale=scale)
    return y


def scale_heads(x_THV: Tensor, s: Tensor, *, add: Tensor | None = None, impl: Impl = "auto") -> Tensor:
    """s x (+ add), [T, H, V] in x.dtype (fp32 or wider). s: [H] or [T, H]; add: [T, H, V]."""
    assert s.shape in (x_THV.shape[1:2], x_THV.shape[:2]) and (add is None or add.shape == x_THV.shape)
    y: Tensor = pick("gates.scale_heads", _ORDER, impl, x_THV)(x_THV, s, add=add)
    return y
