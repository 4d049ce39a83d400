"""The specification of attention: one row, one head at a time, in fp64; autograd gives the gradients."""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged
from stretto.kernels.attention.softmax import Softmax


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """It always can."""
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, seqs: Seqs, kv: tuple[Paged, Paged] | None, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """See `stretto.kernels.attention.attention`."""
    if kv is not None:
        kv[0].append(k, seqs)
        kv[1].append(v, seqs)
    per_group, window = q.shape[1] // k.shape[1], softmax.window
    out, sums = [], []
    for b in range(seqs.num_seqs):
        first, context = seqs.starts[b], seqs.contexts[b]
        rows = slice(first, seqs.starts[b + 1])
        keys, values = (kv[0].read(b, seqs), kv[1].read(b, seqs)) if kv is not None else (k[rows], v[rows])
        if kv is None:
            context = 0
        positions = kv[0].key_positions(b) if kv is not None else None
        held = range(context) if positions is None else positions.tolist()
        parents, depth = seqs.tree(b).parents, seqs.tree(b).depths
        for row in range(seqs.lens[b]):
            seen, node = [], row
            while node >= 0:
                seen.append(node)
                node = parents[node]
            position = context + depth[row]
            visible = [*enumerate(held), *((len(held) + r, context + depth[r]) for r in reversed(seen))]
            index = [j for j, where in visible if window is None or position - where < window]
            heads = [h // per_group for h in range(q.shape[1])]
            products = torch.einsum("hk,jhk->hj", q[first + row].double(), keys[index][:, heads].double())
            scores = softmax.scores(products)
            if softmax.sinks is not None:
                scores = torch.cat([scores, softmax.sinks.double()[:, None]], 1)
            sums.append(scores.logsumexp(-1).detach())
            weights = scores.softmax(-1)[:, : len(index)]
            out.append(torch.einsum("hj,jhv->hv", weights, values[index][:, heads].double()))
    if not out:
        return q.new_zeros((0, q.shape[1], v.shape[2])), q.new_zeros((0, q.shape[1]), dtype=torch.float32)
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.stack(out).to(q.dtype), torch.stack(sums).to(wide)
