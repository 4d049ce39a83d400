"""Root-mean-square normalisation, plain, per group, and gated; unit length.

    n = x / sqrt(mean(x^2) + eps)        the mean over each of `groups` equal parts of the last dimension
    plain                y = n * weight
    gated                y = norm(x * silu(gate)) * weight                                              (Mamba-2)
    gated, norm first    y = norm(x) * weight * silu(gate)                                              (Gated DeltaNet)
    unit length          y = x / sqrt(sum(x^2) + eps)

Statistics and gates are fp32 or wider; the normalised value is rounded to x.dtype *before* the weight multiplies it,
as Llama does, unless the weight is wider than x: zero-centred weights (Gemma) are passed as 1 + w in fp32. Source:
RMSNorm, arXiv 1910.07467.
"""

from torch import Tensor

from stretto.kernels.pick import Impl, pick

__all__ = ["rms_norm", "unit_length"]

_ORDER: tuple[Impl, ...] = ("native", "torch", "reference")


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float,
    groups: int = 1,
    gate: Tensor | None = None,
    norm_before_gate: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """[..., D] in x.dtype; a row's bits do not depend on the other rows.

    x: [..., D]; weight: [D]; gate: the shape of x. Bound: bytes of x (and gate) read and y written.
    """
    assert x.shape[-1] % groups == 0 and (gate is None or gate.shape == x.shape)
    assert weight is None or weight.shape == x.shape[-1:]
    run = pick("rmsnorm", _ORDER, impl, x)
    y: Tensor = run(x, weight, eps=eps, groups=groups, gate=gate, norm_before_gate=norm_before_gate)
    return y


def unit_length(x: Tensor, *, eps: float, impl: Impl = "auto") -> Tensor:
    """[..., D] in x.dtype (fp32 or wider): x / sqrt(sum(x^2) + eps) over the last dimension."""
    y: Tensor = pick("rmsnorm.unit_length", _ORDER, impl, x)(x, eps=eps)
    return y
