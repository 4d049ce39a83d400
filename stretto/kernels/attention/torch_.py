"""Attention through torch's fused CPU kernel: one call for all decode rows, one or two per prefill sequence.

The query heads that share a key head are folded into rows, so keys and values are never repeated for decode. Step
sequences are padded to a common length and masked; a prefill chunk attends to its context and to itself separately
and merges the two, so no [rows, context] mask is ever built for it.
"""

import torch
from torch import Tensor

from stretto.core.seqs import MAX_TREE_ROWS, Seqs
from stretto.core.state import Paged

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The fused kernel wants CPU tensors and equal key and value sizes."""
    if q.device.type != "cpu":
        return f"it runs on CPU tensors, these are on {q.device.type}"
    if k.shape[-1] != v.shape[-1]:
        return f"key size {k.shape[-1]} and value size {v.shape[-1]} differ"
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
            keys, values = kv[0].read_padded(step), kv[1].read_padded(step)
            parts.append(_step(q[:rows], keys.to(q.dtype), values.to(q.dtype), step, scale, window))
    for b in range(first_chunk, seqs.num_seqs):
        rows_b = slice(seqs.starts[b], seqs.starts[b + 1])
        if seqs.lens[b] == 0:
            continue
        if kv is None:
            parts.append(_chunk(q[rows_b], k[rows_b], v[rows_b], seqs, b, 0, scale, window))
        else:
            keys, values = kv[0].read(b, seqs).to(q.dtype), kv[1].read(b, seqs).to(q.dtype)
            parts.append(_chunk(q[rows_b], keys, values, seqs, b, seqs.contexts[b], scale, window))
    if len(parts) == 1:
        return parts[0]
    if not parts:
        wide = torch.promote_types(q.dtype, torch.float32)
        return q.new_zeros((0, q.shape[1], v.shape[2])), q.new_zeros((0, q.shape[1]), dtype=wide)
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


def _step(
    q: Tensor, keys: Tensor, values: Tensor, seqs: Seqs, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """All step sequences at once. q: [T, H, K]; keys, values: [B, L, G, K], padded."""
    (T, H, K), (B, L, G, _) = q.shape, keys.shape
    per_group, longest = H // G, max(seqs.lens)
    ragged = any(n != longest for n in seqs.lens)
    if ragged:
        q = q.index_select(0, seqs.memo("padded rows", lambda: _padded_rows(seqs, longest)))
    # [B, N, G, R, K] -> [B, G, R * N, K]: the heads of a group become rows
    folded = q.view(B, longest, G, per_group, K).permute(0, 2, 3, 1, 4).reshape(B, G, per_group * longest, K)
    mask = seqs.memo(
        ("step mask", L, window, per_group, q.dtype), lambda: _step_mask(seqs, longest, L, window, per_group, q.dtype)
    )
    o, lse = _fused(folded, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scale)
    o = o.view(B, G, per_group, longest, K).permute(0, 3, 1, 2, 4).reshape(B * longest, H, K)
    lse = lse.view(B, G, per_group, longest).permute(0, 3, 1, 2).reshape(B * longest, H)
    if ragged:
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
    seqs: Seqs, longest: int, length: int, window: int | None, per_group: int, dtype: torch.dtype
) -> Tensor | None:
    """[B, 1, R * longest, length] additive mask, or None where every row sees every key."""
    same = all(n == 1 and c + 1 == length for n, c in zip(seqs.lens, seqs.contexts, strict=True))
    if same and (window is None or length <= window):
        return None
    assert longest <= MAX_TREE_ROWS, "step sequences have at most 64 rows"
    rows = _padded_rows(seqs, longest).view(seqs.num_seqs, longest)
    real = torch.arange(longest)[None, :] < torch.tensor(seqs.lens)[:, None]
    bits = torch.where(real, seqs.ancestors[rows], torch.ones((), dtype=torch.int64))
    allowed = _visible(seqs.positions[rows], bits, seqs, length, window)
    allowed |= ~real[..., None]  # a padding row may see anything, as long as its softmax is finite
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    return mask.repeat(1, per_group, 1).unsqueeze(1)


def _visible(positions: Tensor, bits: Tensor, seqs: Seqs, length: int, window: int | None) -> Tensor:
    """[B, N, length] bool from positions [B, N] and ancestor bits [B, N]: context, then ancestors, then window."""
    context = seqs.context_lens[:, None]
    offset = torch.arange(length)[None, :] - context  # [B, length]: row number of a key inside its sequence
    in_rows = (offset >= 0) & (offset < torch.tensor(seqs.lens)[:, None])
    is_ancestor = ((bits[..., None] >> offset.clamp(0, 63)[:, None, :]) & 1).bool()
    allowed = (offset < 0)[:, None, :] | (in_rows[:, None, :] & is_ancestor)
    if window is not None:
        key_positions = torch.arange(length).repeat(len(context), 1)
        for b, (start, n, c) in enumerate(zip(seqs.starts, seqs.lens, seqs.contexts, strict=False)):
            key_positions[b, c : c + n] = seqs.positions[start : start + n]
        allowed &= positions[..., None] - key_positions[:, None, :] < window
    return allowed


def _chunk(
    q: Tensor, keys: Tensor, values: Tensor, seqs: Seqs, b: int, context: int, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """One sequence in any form. q: [n, H, K]; keys, values: [context + n, G, K]."""
    assert seqs.parents[b] is None, "draft trees run in step form"
    if window is not None and context + len(q) > window:
        ago = torch.arange(context, context + len(q))[:, None] - torch.arange(context + len(q))[None, :]
        return _dense(q, keys, values, scale, (ago >= 0) & (ago < window))
    if context == 0:
        return _dense(q, keys, values, scale, causal=True)
    if torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad):
        # The fused kernel gives lse no gradient, and the weights of a merge are functions of lse: one masked softmax.
        ago = torch.arange(context, context + len(q))[:, None] - torch.arange(context + len(q))[None, :]
        return _dense(q, keys, values, scale, ago >= 0)
    past = _dense(q, keys[:context], values[:context], scale)
    own = _dense(q, keys[context:], values[context:], scale, causal=True)
    # imported late: the public module imports this one through `pick`
    from stretto.kernels.attention import merge

    return merge(*past, *own)


def _dense(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """One softmax. q: [n, H, K]; keys, values: [L, G, K]; visible: [n, L] bool or None (all, or causal)."""
    n, H, _ = q.shape
    per_group = H // keys.shape[1]
    if per_group > 1:
        keys, values = keys.repeat_interleave(per_group, 1), values.repeat_interleave(per_group, 1)
    mask = None
    if visible is not None:
        mask = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, -torch.inf)[None, None]
    heads = [t.transpose(0, 1).unsqueeze(0) for t in (q, keys, values)]
    o, lse = _fused(*heads, is_causal=causal, attn_mask=mask, scale=scale)
    return o[0].transpose(0, 1), lse[0].transpose(0, 1)[:n]
