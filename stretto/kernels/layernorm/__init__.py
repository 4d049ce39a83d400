"""Layer normalisation: rows without their mean, of variance 1.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias        means over the last dimension

Statistics are fp32 or wider, and the result is rounded once. Source: arXiv 1607.06450.
"""

from torch import Tensor

from stretto.kernels.pick import Impl, pick

__all__ = ["layer_norm"]

_ORDER: tuple[Impl, ...] = ("native", "torch", "reference")


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float, impl: Impl = "auto"
) -> Tensor:
    """[..., D] in x.dtype; a row's bits do not depend on the other rows.

    x: [..., D]; weight, bias: [D]. Bound: bytes of x read and y written.
    """
    assert all(vector is None or vector.shape == x.shape[-1:] for vector in (weight, bias))
    y: Tensor = pick("layernorm.layer_norm", _ORDER, impl, x)(x, weight, bias, eps=eps)
    return y
