"""Dense matrix product through torch, with a shape rule that keeps decode rows reproducible.

BLAS libraries choose their summation order from the number of rows, so the bits of a row change with its companions.
Step rows (decode, verification) are therefore always multiplied in blocks of exactly `STEP_ROWS` rows, the last one
padded with zeros: a row meets the same kernel alone, in a batch and inside a draft. Prefill rows go in one product.
"""

import torch.nn.functional as F
from torch import Tensor, cat

STEP_ROWS = 16


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """It always can."""
    return None


def linear(x_TD: Tensor, weight: Tensor, bias: Tensor | None, *, num_step_rows: int) -> Tensor:
    """x [T, D] times weight [O, D] transposed, plus bias [O]; the first `num_step_rows` rows are step rows."""
    if num_step_rows == 0:
        return F.linear(x_TD, weight, bias)
    parts = [
        _step_block(x_TD[first : min(first + STEP_ROWS, num_step_rows)], weight, bias)
        for first in range(0, num_step_rows, STEP_ROWS)
    ]
    if num_step_rows < len(x_TD):
        parts.append(F.linear(x_TD[num_step_rows:], weight, bias))
    return parts[0] if len(parts) == 1 else cat(parts)


def _step_block(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = len(x)
    if rows < STEP_ROWS:
        x = F.pad(x, (0, 0, 0, STEP_ROWS - rows))
    return F.linear(x, weight, bias)[:rows]
