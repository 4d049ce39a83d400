"""Short causal depthwise convolution: every channel of a row is a weighted sum of its last W inputs.

    y_t = act(bias + sum_j weight[:, j] * x_{t - (W-1) + j})        weight[:, W-1] meets the row itself

Inputs before the sequence are zero; in a draft tree "before" follows ancestors. The state of a sequence is the tail
of its raw inputs, (W - 1, C), oldest first. Source: the local convolution of H3 and Mamba, arXiv 2312.00752.
"""

from typing import Literal

from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot
from stretto.kernels.pick import Impl, pick

__all__ = ["short_conv"]


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seqs: Seqs,
    state: Slot | None = None,
    activation: Literal["silu"] | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """[T, C] in x.dtype.

    x: [T, C]; weight: [C, W]; bias: [C]. state: slot of shape (W - 1, C), left after the definite rows; None = zeros
    before every sequence, nothing written. Sums are fp32 or wider. A row has the same bits in step and chunked form.
    Bound: bytes of x read and y written.
    """
    assert x.shape[1] == weight.shape[0] and len(x) == seqs.num_rows, f"{tuple(x.shape)}, {tuple(weight.shape)}"
    assert not seqs.chunk_part.has_drafts, "drafts run in step form"
    run = pick("short_conv", ("native", "torch", "reference"), impl, x, weight)
    y: Tensor = run(x, weight, bias, seqs=seqs, state=state, activation=activation)
    return y
