"""Diagonal scan: every channel keeps S numbers that decay by themselves, the state-space layer of Mamba (S6).

With A = -exp(A_log), per channel f and state s:

    h_t[s, f] = exp(dt_t[f] A[f, s]) h_{t-1}[s, f] + dt_t[f] x_t[f] B_t[s]
    y_t[f]    = sum_s h_t[s, f] C_t[s] + D[f] x_t[f]

B and C are shared by all channels. The decay is exact for inputs that stay constant over a step, the input is Euler's
rule, as in the paper. A row's bits are the same alone, in a batch, in any split into calls, in a draft tree and in the
replay of an accepted path. Source: selective state spaces, arXiv 2312.00752.
"""

from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot
from stretto.kernels.pick import Impl, pick

__all__ = ["dscan"]


def dscan(
    x_TF: Tensor,
    dt_TF: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    *,
    A_log_FS: Tensor,
    D_F: Tensor,
    seqs: Seqs,
    state: Slot | None = None,
    chunk: int = 16,
    impl: Impl = "auto",
) -> Tensor:
    """y [T, F] in x.dtype.

    dt: [T, F] >= 0, fp32 or wider. state: slot of shape (S, F), left after the definite rows; None = zero entry state,
    nothing written. State arithmetic is fp32 or wider whatever the dtype. chunk: rows whose states are in memory at
    once; the result does not depend on it.

    Bound: S F state bytes read and written per sequence and call, T S F exponentials.
    """
    assert x_TF.shape == dt_TF.shape and B_TS.shape == C_TS.shape and len(x_TF) == len(B_TS) == seqs.num_rows
    assert A_log_FS.shape == (x_TF.shape[1], B_TS.shape[1]) and D_F.shape == x_TF.shape[1:] and chunk > 0
    assert not seqs.chunk_part.has_drafts, "drafts run in step form"
    run = pick("dscan", ("native", "torch", "reference"), impl, x_TF, B_TS)
    y: Tensor = run(x_TF, dt_TF, B_TS, C_TS, A_log=A_log_FS, D=D_F, seqs=seqs, state=state, chunk=chunk)
    return y
