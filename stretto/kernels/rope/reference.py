"""The specification of the rotation: a pair is a complex number, multiplied by cos + i sin, in fp64."""

import torch
from torch import Tensor


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def rope(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `stretto.kernels.rope.apply_rope`. cos, sin: [T, dim / 2] fp32."""
    half = cos.shape[-1]
    x = x_THK.double()
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    turned = pairs * torch.complex(cos.double(), sin.double()).unsqueeze(1)
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1).to(x_THK.dtype)
