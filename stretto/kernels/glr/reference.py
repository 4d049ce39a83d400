"""The specification of the gated linear recurrence: one row and one head at a time in fp64; autograd differentiates."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """It always can."""
    return None


def glr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor | None,
    seqs: Seqs,
    state: Slot | None,
    scale: float,
    chunk: int,
) -> Tensor:
    """See `stretto.kernels.glr.glr`; `chunk` only says how to compute, so it is not used."""
    size = (seqs.num_seqs, v.shape[1], k.shape[2], v.shape[2])
    entry = v.new_zeros(size, dtype=torch.float64) if state is None else state.read()
    o, ends = _run(entry, q, k, v, g, beta, seqs, scale)
    if state is not None:
        state.write(ends)
        if seqs.has_drafts:
            gates = {} if beta is None else {"beta": beta}
            state.record(_replay, {"k": k, "v": v, "g": g, **gates})
    return o.to(v.dtype)


def _replay(slot: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    _, ends = _run(slot.read(), rows["k"], rows["k"], rows["v"], rows["g"], rows.get("beta"), seqs, 1.0)
    slot.write(ends)


def _run(
    entry: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, seqs: Seqs, scale: float
) -> tuple[Tensor, Tensor]:
    """(o [T, H, V], states after the definite rows [B, H, K, V]), both fp64."""
    heads, groups = v.shape[1], k.shape[1]
    head_states = [
        _head(entry[:, h], q[:, h * groups // heads], k[:, h * groups // heads], v[:, h], g[:, h],
              None if beta is None else beta[:, h], seqs)
        for h in range(heads)
    ]  # fmt: skip
    o = torch.stack([o for o, _ in head_states], 1)
    return scale * o, torch.stack([ends for _, ends in head_states], 1)


def _head(
    entry: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, seqs: Seqs
) -> tuple[Tensor, Tensor]:
    """One head: entry [B, K, V], q k [T, K], v [T, V], g beta [T] -> (o [T, V], ends [B, K, V])."""
    entry, q, k, v, g = (x.double() for x in (entry, q, k, v, g))
    out, ends = [v.new_zeros((0, v.shape[1]))], [entry[:0]]
    for b in range(seqs.num_seqs):
        after: list[Tensor] = []  # the state after every row of this sequence
        for row, parent in enumerate(seqs.tree(b).parents):
            t = seqs.starts[b] + row
            decayed = g[t].exp() * (after[parent] if parent >= 0 else entry[b])
            new = v[t] if beta is None else beta[t].double() * (v[t] - decayed.T @ k[t])
            after.append(decayed + torch.outer(k[t], new))
            out.append((after[row].T @ q[t])[None])
        ends.append((after[seqs.definite[b] - 1] if seqs.definite[b] else entry[b])[None])
    return torch.cat(out), torch.cat(ends)
