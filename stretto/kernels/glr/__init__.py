"""Gated linear recurrence: the state update of linear attention, RetNet, Mamba-2, DeltaNet and Gated DeltaNet.

Per head, with a state S of shape (K, V) and a log decay g_t <= 0:

    decay   S_t = e^{g_t} S_{t-1} + k_t v_t^T
    delta   S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - e^{g_t} S_{t-1}^T k_t)^T
    both    o_t = scale * S_t^T q_t

Step form applies this row by row, along the branches of draft trees; a row's bits are the same alone, in a batch, in
a draft and in the replay of an accepted path. Chunked form (prefill, training) computes `chunk` rows at once; its
boundaries are absolute multiples of `chunk`, so a prefix that was restored at one continues with the bits of a
prefix that was computed.

Sources: state-space duality, arXiv 2405.21060; the gated delta rule and its UT transform, arXiv 2412.06464.
"""

from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot
from stretto.kernels.pick import Impl, pick

__all__ = ["glr"]


def glr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor | None = None,
    seqs: Seqs,
    state: Slot | None = None,
    scale: float = 1.0,
    chunk: int = 64,
    impl: Impl = "auto",
) -> Tensor:
    """o [T, H, V] in v.dtype.

    q k: [T, G, K] where head h reads group h // (H / G); v: [T, H, V]; g: [T, H] log decay, fp32 or wider;
    beta: [T, H], None = no delta rule. state: slot of shape (H, K, V), left after the definite rows; None = zero
    entry state, nothing written. State arithmetic is fp32 or wider whatever the dtype.

    Sequences before `seqs.num_step` run in step form, the others in chunked form; only step sequences may have
    provisional rows. Bound: step 2 H K V state bytes read and written per sequence; chunked
    T H (2 chunk (K + V) + 4 K V) FLOP, and chunk (2 K + V) more per row and head for the delta rule.
    """
    heads, groups = v.shape[1], q.shape[1]
    assert q.shape == k.shape and heads % groups == 0, f"{tuple(q.shape)}, {tuple(k.shape)}, {heads} heads"
    assert g.shape == v.shape[:2] and (beta is None or beta.shape == g.shape), "one gate per row and head"
    assert len(q) == len(v) == seqs.num_rows and chunk > 0
    assert not seqs.chunk_part.has_drafts, "drafts run in step form"
    run = pick("glr", ("native", "torch", "reference"), impl, q, k, v)
    o: Tensor = run(q, k, v, g=g, beta=beta, seqs=seqs, state=state, scale=scale, chunk=chunk)
    return o
