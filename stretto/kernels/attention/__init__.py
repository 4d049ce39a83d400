"""Softmax attention over packed rows, with or without a paged cache.

    o_i = sum_j softmax_j(scale * q_i . k_j) v_j        over the keys j that row i may see
    lse_i = log sum_j exp(scale * q_i . k_j)            (soft-capped scores and sinks: see `Softmax`)

A row sees its context and its ancestors among the rows of its sequence, itself included: for a chain that is the
causal mask, for a draft tree the ancestor bits of `Seqs`. With `window` = w it sees only keys at positions greater
than its own minus w. Positions are those that the cache names (`Paged.key_positions`): its list of keys may have any
order, and lack what no row sees. (o, lse) is the associative form of the softmax: attention over disjoint sets of keys
is merged by `merge`, which serves split caches, shared prefixes and context parallelism.

Sources: online softmax and lse, arXiv 2205.14135; paging, arXiv 2309.06180; grouped queries, arXiv 2305.13245.
"""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged
from stretto.kernels.attention.softmax import Softmax
from stretto.kernels.pick import Impl, pick

__all__ = ["attention", "merge"]


def attention(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGV: Tensor,
    *,
    seqs: Seqs,
    kv: tuple[Paged, Paged] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """(o [T, H, V] in q.dtype, lse [T, H] in fp32 or wider).

    q: [T, H, K]; k: [T, G, K]; v: [T, G, V], query head h reads key head h // (H / G). kv: the paged keys and values
    of this layer; this call's rows are appended to them. scale: default K ** -0.5. softcap, sinks [H]: see `Softmax`.
    Scores and softmax are fp32 or wider whatever the dtype; lse carries no gradient. Bound: bytes of keys and values
    read (decode), 4 T L H K FLOP / 2 (causal prefill).
    """
    scale = q_THK.shape[-1] ** -0.5 if scale is None else scale
    run = pick("attention", ("native", "torch", "reference"), impl, q_THK, k_TGK, v_TGV)
    assert sinks is None or sinks.shape == q_THK.shape[1:2]
    o, lse = run(q_THK, k_TGK, v_TGV, seqs=seqs, kv=kv, softmax=Softmax(scale, window, softcap, sinks))
    return o, lse


def merge(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys. o: [..., V]; lse: [...], -inf where a set is empty."""
    lse = torch.logaddexp(lse1, lse2)
    safe = torch.where(lse == -torch.inf, torch.zeros_like(lse), lse)
    w1, w2 = ((part - safe).exp().unsqueeze(-1) for part in (lse1, lse2))
    return (w1 * o1 + w2 * o2).to(o1.dtype), lse
