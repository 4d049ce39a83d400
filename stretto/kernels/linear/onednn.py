"""Products with weights in oneDNN's blocked layout, through torch: half the time of a plain weight for few rows.

`F.linear` hands oneDNN a row-major weight, which it copies into its own layout at every call; packed once, the copy is
gone and so is the plain weight. Step rows go in blocks of a fixed size for the reason that torch_.py gives.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from stretto.kernels.linear.torch_ import STEP_ROWS, in_step_blocks


@dataclass(frozen=True, slots=True)
class Prepacked:
    """A weight [O, D] in oneDNN's layout, which only this backend can read."""

    data: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the matrix streams."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


@cache
def _missing() -> str | None:
    """Why this machine or this torch has no packed bf16 products, None if it has."""
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bf16 products on this CPU"
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return f"torch {torch.__version__} does not pack weights"
    return None


def cannot_pack(weight: Tensor) -> str | None:
    """Why `prepack` cannot take `weight`, None if it can."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return f"packs bf16 weights on the CPU, not {weight.dtype} on {weight.device.type}"
    return _missing()


def prepack(weight: Tensor) -> Prepacked:
    """A copy of `weight` [O, D] in the layout for step rows (any number of rows may be multiplied with it)."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), STEP_ROWS)
    return Prepacked(packed, (weight.shape[0], weight.shape[1]), weight.dtype)


def why_not(x: Tensor, weight: Tensor | Prepacked) -> str | None:
    """The weight must have been packed, and nothing must ask for gradients."""
    if not isinstance(weight, Prepacked):
        return "the weight is not packed"
    if x.dtype != weight.dtype:
        return f"the weight is packed in {weight.dtype}, the rows are {x.dtype}"
    return "it has no gradients" if torch.is_grad_enabled() and x.requires_grad else None


def linear(x_TD: Tensor, weight: Prepacked, bias: Tensor | None, *, num_step_rows: int) -> Tensor:
    """x [T, D] times weight [O, D] transposed, plus bias [O]; the first `num_step_rows` rows are step rows."""

    def product(x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_empty((0, weight.shape[0]))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.data, bias, "none", [], "")
        return y

    return in_step_blocks(product, x_TD, num_step_rows)
