"""Long causal convolution: every channel of a row is a weighted sum of all inputs before it.

    y_t = sum_{j=0}^{min(L-1, t)} kernel[:, j] * u_{t-j}        kernel[:, 0] meets the row itself

Inputs before the sequence are zero, taps beyond L are zero; in a draft tree "before" follows ancestors. The state of a
sequence is all its inputs, (D,) per token: the form of decoding that is exact for every kernel, at O(L D) per token.
Source: the convolution of H3, Hyena (arXiv 2302.10866) and simple long convolutions (2302.06646).
"""

from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged
from stretto.kernels.pick import Impl, pick

__all__ = ["fftconv"]


def fftconv(u: Tensor, kernel: Tensor, *, seqs: Seqs, history: Paged | None = None, impl: Impl = "auto") -> Tensor:
    """[T, D] in u.dtype.

    u: [T, D]; kernel: [D, L]. history: paged state of shape (D,), to which the call appends `u`; with it, inputs are
    read as it stores them. None = zeros before every sequence, nothing written. Sums are fp32 or wider.
    Step rows are direct sums in the order of positions: a row has the same bits alone, in a draft and in a batch.
    Chunked rows go through the FFT, O(T log T D), and are causal to rounding only.
    Bound: bytes of u, of the kernel and of min(context, L) inputs per step row.
    """
    assert u.shape[1] == kernel.shape[0] and len(u) == seqs.num_rows, f"{tuple(u.shape)}, {tuple(kernel.shape)}"
    assert not seqs.chunk_part.has_drafts, "drafts run in step form"
    run = pick("fftconv", ("native", "torch", "reference"), impl, u, kernel)
    y: Tensor = run(u, kernel, seqs=seqs, history=history)
    return y
