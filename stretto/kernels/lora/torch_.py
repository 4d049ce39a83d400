"""The rows of one adapter after those of another; step rows in the padded blocks of `linear/torch_.py`, so that their
bits do not depend on how many there are."""

from bisect import bisect_left
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.core.seqs import LORA, Seqs
from stretto.kernels.linear.torch_ import in_step_blocks
from stretto.kernels.lora.table import Factors

_COLUMNS = 16


def why_not(x: Tensor, site: Any) -> str | None:
    """It always can."""
    return None


def add_lora(x_TD: Tensor, y_TD: Tensor, site: Any, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.lora.add_lora`."""
    groups = seqs.memo((LORA, "rows"), lambda: _groups(seqs))
    if not groups:
        return y_TD
    wide, y_TD = torch.promote_types(x_TD.dtype, torch.float32), y_TD.clone()
    for number, (rows, num_step_rows) in groups.items():
        x_RD, first = x_TD[rows].to(wide), 0
        for i, width in enumerate(site.widths):
            factors = site.table.find(number, site.first + i)
            columns = slice(first, first + width)
            first += width
            if factors is not None:
                term = in_step_blocks(partial(_term, factors, wide), x_RD, num_step_rows)
                y_TD[rows, columns] = (y_TD[rows, columns].to(wide) + term).to(y_TD.dtype)
    return y_TD


def _groups(seqs: Seqs) -> dict[int, tuple[list[int], int]]:
    """The rows of every adapter, and how many of them are step rows."""
    numbers = seqs.tags.get(LORA, 0)
    numbers = (numbers,) * seqs.num_rows if isinstance(numbers, int) else numbers
    found: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        if number:
            found.setdefault(number, []).append(row)
    return {number: (rows, bisect_left(rows, seqs.num_step_rows)) for number, rows in sorted(found.items())}


def _term(factors: Factors, dtype: torch.dtype, x_RD: Tensor) -> Tensor:
    """scale * x a^T b, [R, d_out]. In a product with few columns, or with a transposed matrix, a row's bits depend on
    its place in the block; zeros beyond change nothing else."""
    rank, d_out = factors.b.shape
    a = F.pad(factors.a, (0, 0, 0, -rank % _COLUMNS)).to(dtype)
    b = F.pad(factors.b, (0, -d_out % _COLUMNS, 0, -rank % _COLUMNS)).to(dtype).T.contiguous()
    return F.linear(F.linear(x_RD, a), b)[:, :d_out] * factors.scale
