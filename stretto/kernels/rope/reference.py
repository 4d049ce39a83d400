"""The specification of the rotation: a pair is a complex number, multiplied by cos + i sin, in fp64."""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.rope import Rope, rope_tables


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def rope(x_THK: Tensor, rope: Rope, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.rope.apply_rope`."""
    cos, sin = rope_tables(rope, seqs.positions)
    half = cos.shape[-1]
    x = x_THK.double()
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    turned = pairs * torch.complex(cos.double(), sin.double()).unsqueeze(1)
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1).to(x_THK.dtype)
