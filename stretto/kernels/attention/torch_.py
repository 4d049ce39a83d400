"""Attention in torch: reproducible products for step rows, torch's fused CPU kernel for prefill where it can run.

Step rows (decode, verification) fold the query heads that share a key head into rows, and cut the keys into splits
anchored at position 0. A prefill chunk attends to its context and to itself separately and merges the two, so no
[rows, context] mask is ever built for it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged
from stretto.core.tree import MAX_TREE_ROWS

ROWS, SPLIT = 16, 64  # of every product of the step form
_LOWEST = -1e30  # stands for the maximum of no keys, so that no difference is inf - inf
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """It runs everywhere."""
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, seqs: Seqs, kv: tuple[Paged, Paged] | None, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """See `stretto.kernels.attention.attention`."""
    if kv is not None:
        kv[0].append(k, seqs)
        kv[1].append(v, seqs)
    parts: list[tuple[Tensor, Tensor]] = []
    first_chunk = 0
    if kv is not None and seqs.num_step:
        first_chunk = seqs.num_step
        step, rows = seqs.step_part, seqs.num_step_rows
        if rows:
            keys, values = kv[0].read_padded(step, SPLIT), kv[1].read_padded(step, SPLIT)
            held = [kv[0].key_positions(b) for b in range(step.num_seqs)]
            parts.append(_step(q[:rows], keys.to(q.dtype), values.to(q.dtype), step, held, scale, window))
    for b in range(first_chunk, seqs.num_seqs):
        rows_b = slice(seqs.starts[b], seqs.starts[b + 1])
        if seqs.lens[b] == 0:
            continue
        if kv is None:
            parts.append(_chunk(q[rows_b], k[rows_b], v[rows_b], seqs, b, None, scale, window))
        else:
            keys, values = kv[0].read(b, seqs).to(q.dtype), kv[1].read(b, seqs).to(q.dtype)
            parts.append(_chunk(q[rows_b], keys, values, seqs, b, kv[0].key_positions(b), scale, window))
    if len(parts) == 1:
        return parts[0]
    if not parts:
        wide = torch.promote_types(q.dtype, torch.float32)
        return q.new_zeros((0, q.shape[1], v.shape[2])), q.new_zeros((0, q.shape[1]), dtype=wide)
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


def _step(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    seqs: Seqs,
    held: Sequence[Tensor | None],
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """All step sequences at once. q: [T, H, K]; keys, values: [B, L, G, K], padded to whole splits. held: positions of
    the keys before this call, per sequence.

    Every product has the shape [ROWS, K] x [K, SPLIT] or [ROWS, SPLIT] x [SPLIT, K], one per split of the keys, and
    the splits are added in order: the bits of a row depend neither on its companions nor on what is padded. (The keys
    of a branching draft lie in node order, not in path order: there a row may differ in its last bit.)
    """
    (T, H, K), (B, L, G, V) = q.shape, values.shape
    per_group, longest, splits = H // G, max(seqs.lens), L // SPLIT
    if any(n != longest for n in seqs.lens):
        q = q.index_select(0, seqs.memo("padded rows", lambda: _padded_rows(seqs, longest)))
    # The heads of a group become rows, R * N of them, in blocks of ROWS: [B, G, blocks, ROWS, K]
    folded = q.view(B, longest, G, per_group, K).permute(0, 2, 3, 1, 4).reshape(B, G, per_group * longest, K)
    missing = -(per_group * longest) % ROWS
    rows = F.pad(folded, (0, 0, 0, missing)).view(B, G, 1, -1, ROWS, K)
    # [B, G, splits, 1, SPLIT, K], and V for values
    keys, values = (
        t.view(B, splits, SPLIT, G, -1).permute(0, 3, 1, 2, 4).contiguous()[:, :, :, None] for t in (keys, values)
    )
    wide = torch.promote_types(q.dtype, torch.float32)
    mask = _step_mask(seqs, held, longest, L, window, per_group, wide)
    scores = torch.matmul(rows, keys.mT).to(wide) * scale + mask  # [B, G, splits, blocks, ROWS, SPLIT]
    top = scores.amax(-1, keepdim=True).clamp(min=_LOWEST)
    weights = (scores - top).exp()
    sums = weights.sum(-1, keepdim=True)
    o = torch.matmul(weights.to(q.dtype), values).to(wide)
    if splits > 1:
        highest = top.amax(2, keepdim=True)
        share = (top - highest).exp()
        # torch adds in groups that are anchored at the first split: splits that a row cannot see add exact zeros
        o, sums = (o * share).sum(2, keepdim=True), (sums * share).sum(2, keepdim=True)
        top = highest
    o, lse = (o / sums).to(q.dtype), (top + sums.log()).squeeze(-1)
    seen = slice(0, per_group * longest)
    o = o.view(B, G, -1, V)[:, :, seen].view(B, G, per_group, longest, V).permute(0, 3, 1, 2, 4).reshape(-1, H, V)
    lse = lse.view(B, G, -1)[:, :, seen].view(B, G, per_group, longest).permute(0, 3, 1, 2).reshape(-1, H)
    if len(o) != T:
        keep = seqs.memo("unpadded rows", lambda: _unpadded_rows(seqs, longest))
        o, lse = o.index_select(0, keep), lse.index_select(0, keep)
    return o, lse


def _padded_rows(seqs: Seqs, longest: int) -> Tensor:
    """[B * longest] packed row of every padded place (padding repeats the first row of all, finite and ignored)."""
    rows = [s + r if r < n else 0 for s, n in zip(seqs.starts, seqs.lens, strict=False) for r in range(longest)]
    return torch.tensor(rows, device=seqs.device)


def _unpadded_rows(seqs: Seqs, longest: int) -> Tensor:
    """[T] the padded place of every packed row."""
    places = [b * longest + r for b, n in enumerate(seqs.lens) for r in range(n)]
    return torch.tensor(places, device=seqs.device)


def _step_mask(
    seqs: Seqs,
    held: Sequence[Tensor | None],
    longest: int,
    length: int,
    window: int | None,
    per_group: int,
    dtype: torch.dtype,
) -> Tensor:
    """[B, 1, splits, blocks, ROWS, SPLIT] additive mask, shared by all layers whose lists are plain contexts."""
    assert longest <= MAX_TREE_ROWS, "step sequences have at most 64 rows"

    def make() -> Tensor:
        rows = _padded_rows(seqs, longest).view(seqs.num_seqs, longest)
        allowed = _visible(seqs.positions[rows], seqs.ancestors[rows], seqs, held, length, window)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
        mask = mask.repeat(1, per_group, 1)
        mask = F.pad(mask, (0, 0, 0, -mask.shape[1] % ROWS))
        return mask.view(seqs.num_seqs, 1, -1, ROWS, length // SPLIT, SPLIT).permute(0, 1, 4, 2, 3, 5).contiguous()

    if any(positions is not None for positions in held):
        return make()
    return seqs.memo(("step mask", length, window, per_group, dtype), make)


def _visible(
    positions: Tensor, bits: Tensor, seqs: Seqs, held: Sequence[Tensor | None], length: int, window: int | None
) -> Tensor:
    """[B, N, length] bool from positions [B, N] and ancestor bits [B, N]: held keys, then ancestors, then window."""
    device = bits.device
    counts = [c if own is None else len(own) for c, own in zip(seqs.contexts, held, strict=True)]
    # [B, length]: row of a key inside its sequence
    offset = torch.arange(length, device=device)[None, :] - torch.tensor(counts, device=device)[:, None]
    in_rows = (offset >= 0) & (offset < torch.tensor(seqs.lens, device=device)[:, None])
    is_ancestor = ((bits[..., None] >> offset.clamp(0, 63)[:, None, :]) & 1).bool()
    allowed = (offset < 0)[:, None, :] | (in_rows[:, None, :] & is_ancestor)
    if window is not None:
        key_positions = torch.arange(length, device=device).repeat(len(counts), 1)
        for b, (start, n, count) in enumerate(zip(seqs.starts, seqs.lens, counts, strict=False)):
            own = held[b]
            if own is not None:
                key_positions[b, :count] = own
            key_positions[b, count : count + n] = seqs.positions[start : start + n]
        allowed &= positions[..., None] - key_positions[:, None, :] < window
    return allowed


def _chunk(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    seqs: Seqs,
    b: int,
    positions: Tensor | None,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """One sequence in any form. q: [n, H, K]; keys, values: [held + n, G, K]; positions: of the held keys, None if they
    are the context in order."""
    assert seqs.trees[b] is None, "draft trees run in step form"
    held = len(keys) - len(q)
    if window is not None and (positions is not None or held + len(q) > window):
        ago = _ago(q, held)
        if positions is not None:
            ago[:, :held] = seqs.contexts[b] + torch.arange(len(q), device=q.device)[:, None] - positions
        return _dense(q, keys, values, scale, (ago >= 0) & (ago < window))
    if held == 0:
        return _dense(q, keys, values, scale, causal=True)
    if torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad):
        # The fused kernel gives lse no gradient, and the weights of a merge are functions of lse: one masked softmax.
        return _dense(q, keys, values, scale, _ago(q, held) >= 0)
    past = _dense(q, keys[:held], values[:held], scale)
    own = _dense(q, keys[held:], values[held:], scale, causal=True)
    # imported late: the public module imports this one through `pick`
    from stretto.kernels.attention import merge

    return merge(*past, *own)


def _ago(q: Tensor, held: int) -> Tensor:
    """[n, held + n]: how many entries of the list before row i key j lies."""
    places = torch.arange(held + len(q), device=q.device)
    return places[held:, None] - places[None, :]


def _dense(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """One softmax. q: [n, H, K]; keys, values: [L, G, K]; visible: [n, L] bool or None (all, or causal)."""
    n, H, _ = q.shape
    per_group = H // keys.shape[1]
    if per_group > 1:
        keys, values = keys.repeat_interleave(per_group, 1), values.repeat_interleave(per_group, 1)
    if q.device.type != "cpu" or keys.shape[-1] != values.shape[-1]:  # what the fused kernel cannot run
        return _unfused(q, keys, values, scale, _ago(q, 0) >= 0 if causal else visible)
    mask = None
    if visible is not None:
        mask = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, -torch.inf)[None, None]
    heads = [t.transpose(0, 1).unsqueeze(0) for t in (q, keys, values)]
    o, lse = _fused(*heads, is_causal=causal, attn_mask=mask, scale=scale)
    return o[0].transpose(0, 1), lse[0].transpose(0, 1)[:n]


def _unfused(q: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in plain operations, query heads and key heads equal in number: any device, any size of values."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("nhk,lhk->hnl", q, keys).to(wide) * scale
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    o = torch.einsum("hnl,lhv->nhv", (scores - lse.unsqueeze(-1)).exp().to(q.dtype), values)
    return o, lse.transpose(0, 1).detach()
