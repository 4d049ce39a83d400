"""The gates through torch, on any device, differentiable, with bits that do not depend on where a row lies."""

from torch import Tensor

from stretto.kernels.pointwise import sigmoid, softplus


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def time_step(x: Tensor, bias: Tensor, *, limit: tuple[float, float]) -> Tensor:
    """clamp(softplus(x + bias), *limit)."""
    return softplus(x + bias.to(x.dtype)).clamp(*limit)


def log_decay(dt: Tensor, A_log: Tensor) -> Tensor:
    """-dt exp(A_log)."""
    return -dt * A_log.to(dt.dtype).exp()


def sigmoid_gate(x: Tensor, *, scale: float) -> Tensor:
    """scale * sigmoid(x)."""
    return sigmoid(x) * scale


def scale_heads(x: Tensor, s: Tensor, *, add: Tensor | None) -> Tensor:
    """s x (+ add)."""
    y = s.to(x.dtype).unsqueeze(-1) * x
    return y if add is None else add + y
