"""The rotation as four products and two sums over whole tensors."""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.rope import Rope, rope_tables


def why_not(x: Tensor) -> str | None:
    """It always can."""
    return None


def rope(x_THK: Tensor, rope: Rope, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.rope.apply_rope`; the tables are made once for all layers."""
    cos, sin = (table.unsqueeze(1) for table in seqs.memo(rope, lambda: rope_tables(rope, seqs.positions)))
    half = cos.shape[-1]
    x1, x2, rest = x_THK.split_with_sizes([half, half, x_THK.shape[-1] - 2 * half], -1)
    turned = [(x1 * cos - x2 * sin).to(x_THK.dtype), (x2 * cos + x1 * sin).to(x_THK.dtype)]
    return torch.cat([*turned, rest] if rest.shape[-1] else turned, -1)
