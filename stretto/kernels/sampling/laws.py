"""From the logits of a row to its law: what is left after temperature, top_k, top_p and min_p, in this order.

Ties go to the lower id everywhere. Arithmetic is fp32 (fp64 for fp64 logits); masses are summed in fp64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.kernels.sampling.adjust import adjust, wide
from stretto.kernels.sampling.rows import RowSampling, refusal

_FIRST_LOOK = (256, 4096, 16384)  # top_p sorts so many of the likeliest tokens before it sorts all


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """What is left of one row: processed logits [n] of the survivors `ids` [n] int64 ascending; None = all [W]."""

    logits: Tensor
    ids: Tensor | None

    def probs(self, vocab: int) -> Tensor:
        """[vocab]: the law, summing to 1."""
        p = self.logits.softmax(0)
        return p if self.ids is None else p.new_zeros(vocab).index_copy_(0, self.ids, p)


def process(logits: Tensor, row: RowSampling) -> Law:
    """The law of one row of logits [W]. Raises UserError if no token is allowed, RunError for NaN or +inf."""
    x = adjust(wide(logits), row) if row.is_adjusted else wide(logits)
    best, token = x.max(dim=0)
    if not math.isfinite(top := best.item()):
        raise refusal(top)
    s = row.sampling
    assert s.temperature is not None and s.top_p is not None and s.top_k is not None and s.min_p is not None, "resolved"
    if s.temperature == 0:
        return Law(x.new_zeros(1), token.view(1))
    # The largest logit becomes 0 first, so that no temperature, however small, can overflow.
    x = (x - best) / max(s.temperature, torch.finfo(x.dtype).tiny)
    ids: Tensor | None = None
    if 0 < s.top_k < len(x):
        ids = likeliest(x, s.top_k)
        if len(ids) > s.top_k:  # equal logits at the edge: the lowest ids stay
            at_edge = x[ids] == x[ids].min()
            surplus = at_edge.cumsum(0) > int(at_edge.sum()) - (len(ids) - s.top_k)
            ids = ids[~(at_edge & surplus)]
        x = x[ids]
    if s.top_p < 1:
        kept = _nucleus(x, s.top_p)
        ids, x = kept if ids is None else ids[kept], x[kept]
    if s.min_p > 0:
        kept = (x >= math.log(s.min_p)).nonzero().squeeze(1)
        ids, x = kept if ids is None else ids[kept], x[kept]
    return Law(x, ids)


def likeliest(x: Tensor, n: int) -> Tensor:
    """Ascending ids of the n largest finite values [W], and of all values equal to the smallest of them."""
    if n >= len(x):
        return (x > -math.inf).nonzero().squeeze(1)
    edge = x.topk(n, sorted=False).values.min()
    return ((x >= edge) & (x > -math.inf)).nonzero().squeeze(1)


def _nucleus(x: Tensor, top_p: float) -> Tensor:
    """Ascending indices of the fewest likeliest tokens whose mass reaches `top_p`; at least one."""
    log_total = x.logsumexp(0)
    for size in (*_FIRST_LOOK, len(x)):
        ids = likeliest(x, size)  # closed under ties, so its order is the beginning of the whole order
        values, order = x[ids].sort(descending=True, stable=True)
        mass = (values - log_total).exp().double()
        through = mass.cumsum(0)
        if through[-1] >= top_p or size >= len(x):
            break
    kept = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept[ids[order[through - mass < top_p]]] = True
    return kept.nonzero().squeeze(1)
