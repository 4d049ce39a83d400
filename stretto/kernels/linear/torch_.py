"""Dense matrix product through torch, with a shape rule that keeps decode rows reproducible.

BLAS libraries choose their summation order from the number of rows, so the bits of a row change with its companions.
Step rows (decode, verification) are therefore always multiplied in blocks of exactly `STEP_ROWS` rows, the last one
padded with zeros: a row meets the same kernel alone, in a batch and inside a draft. Prefill rows go in one product.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, cat

STEP_ROWS = 16


def why_not(x: Tensor, weight: object) -> str | None:
    """Any plain tensor will do."""
    return None if isinstance(weight, Tensor) else "the weight is packed for another backend"


def linear(x_TD: Tensor, weight: Tensor, bias: Tensor | None, *, num_step_rows: int) -> Tensor:
    """x [T, D] times weight [O, D] transposed, plus bias [O]; the first `num_step_rows` rows are step rows."""
    return in_step_blocks(lambda x: F.linear(x, weight, bias), x_TD, num_step_rows)


def lookup(tokens_T: Tensor, weight: Tensor, *, scale: float) -> Tensor:
    """scale * weight[tokens]."""
    rows = F.embedding(tokens_T, weight)
    return rows if scale == 1.0 else rows * scale


def in_step_blocks(product: Callable[[Tensor], Tensor], x_TD: Tensor, num_step_rows: int) -> Tensor:
    """`product` of the rows [T, D]: step rows in padded blocks of `STEP_ROWS`, the others at once."""
    if num_step_rows == 0:
        return product(x_TD)
    parts = []
    for first in range(0, num_step_rows, STEP_ROWS):
        block = x_TD[first : min(first + STEP_ROWS, num_step_rows)]
        rows = len(block)
        if rows < STEP_ROWS:
            block = F.pad(block, (0, 0, 0, STEP_ROWS - rows))
        parts.append(product(block)[:rows])
    if num_step_rows < len(x_TD):
        parts.append(product(x_TD[num_step_rows:]))
    return parts[0] if len(parts) == 1 else cat(parts)
