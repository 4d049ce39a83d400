"""Gated linear recurrence in torch operations: any device, differentiable.

Step form: one pass over the states per tree depth, in elementwise products and plain sums, whose order does not depend
on the number of rows (matrix products promise no order). Chunked form: everything that does not read the state is
batched over all chunks of all sequences; then a few matrix products per chunk carry the states along, all sequences
together. With Gamma_ts = e^{g_{s+1} + ... + g_t} for s <= t, else 0, and G_t = g_1 + ... + g_t inside the chunk:

    delta   (I + strictLower(beta K K^T . Gamma)) [U | W] = beta [V | e^G K]       one triangular solve
            V <- U - W S                                                          decay: V stays
    both    O = e^G Q S + (Q K^T . Gamma) V,   S <- e^{G_C} S + K^T (Gamma_C V)

Gamma's exponents are summed per pair, with 0 above the diagonal: differences G_t - G_s lose digits when the decay is
strong, and above the diagonal they overflow, which a mask behind the exponential turns into inf * 0 in the gradient.
All of it is fp32 or wider.
"""

from collections.abc import Mapping
from typing import NamedTuple

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
    """See `stretto.kernels.glr.glr`."""
    wide = _wide(k, v, g)
    size = (seqs.num_seqs, v.shape[1], k.shape[2], v.shape[2])
    entry = v.new_zeros(size, dtype=wide) if state is None else state.read().to(wide)
    cut, rows = seqs.num_step, seqs.num_step_rows
    outs: list[Tensor] = []
    ends: list[Tensor] = []
    if cut:
        step_beta = None if beta is None else beta[:rows]
        o, end = _step(entry[:cut], q[:rows], k[:rows], v[:rows], g[:rows], step_beta, seqs.step_part, scale)
        outs.append(o.to(v.dtype))
        ends.append(end)
        if state is not None and seqs.has_drafts:
            gates = {} if step_beta is None else {"beta": step_beta}
            state.record(_replay, {"k": k[:rows], "v": v[:rows], "g": g[:rows], **gates})
    if cut < seqs.num_seqs or not cut:
        chunk_beta = None if beta is None else beta[rows:]
        o, end = _chunked(
            entry[cut:], q[rows:], k[rows:], v[rows:], g[rows:], chunk_beta, seqs.chunk_part, scale, chunk
        )
        outs.append(o.to(v.dtype))
        ends.append(end)
    if state is not None:
        state.write(ends[0] if len(ends) == 1 else torch.cat(ends))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _pick_rows(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(0, index)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else scale * x


def _index(values: list[int], length: int, device: torch.device | str) -> Tensor | None:
    """`values` as an index into `length` rows; None if it would change nothing."""
    return None if values == list(range(length)) else torch.tensor(values, dtype=torch.int64, device=device)


# -- step form ---------------------------------------------------------------------------------------------------------


class _Depth(NamedTuple):
    """The rows of one tree depth over all sequences. An index of None stands for everything in order."""

    rows: Tensor | None  # packed rows
    source: Tensor | None  # per row: its parent among the rows of the depth above (depth 0: its sequence)
    ends: Tensor | None  # which of these rows are the last definite ones
    has_ends: bool


class _StepPlan(NamedTuple):
    depths: list[_Depth]
    row_order: Tensor | None  # from rows by depth to packed rows
    end_order: Tensor | None  # from [entry states without definite rows, ends by depth] to sequences
    unmoved: Tensor | None  # sequences without definite rows; None = there are none


def _plan_steps(seqs: Seqs) -> _StepPlan:
    rows: list[list[int]] = []
    sources: list[list[int]] = []
    ends: list[list[int]] = []
    end_seqs: list[list[int]] = []
    for b, definite in enumerate(seqs.definite):
        places: list[int] = []
        for row, (parent, depth) in enumerate(zip(seqs.tree(b).parents, seqs.tree(b).depths, strict=True)):
            if depth == len(rows):
                for table in (rows, sources, ends, end_seqs):
                    table.append([])
            if row == definite - 1:
                ends[depth].append(len(rows[depth]))
                end_seqs[depth].append(b)
            sources[depth].append(places[parent] if parent >= 0 else b)
            places.append(len(rows[depth]))
            rows[depth].append(seqs.starts[b] + row)
    unmoved = [b for b, definite in enumerate(seqs.definite) if not definite]
    by_depth = [row for level in rows for row in level]
    by_end = unmoved + [b for level in end_seqs for b in level]
    above = [seqs.num_seqs, *(len(level) for level in rows)]
    device = seqs.device
    return _StepPlan(
        depths=[
            _Depth(
                _index(level, seqs.num_rows, device),
                _index(source, count, device),
                _index(end, len(level), device),
                bool(end),
            )
            for level, source, end, count in zip(rows, sources, ends, above, strict=False)
        ],
        row_order=_index(_inverse(by_depth), seqs.num_rows, device),
        end_order=_index(_inverse(by_end), seqs.num_seqs, device),
        unmoved=torch.tensor(unmoved, dtype=torch.int64, device=device) if unmoved else None,
    )


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _replay(slot: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    wide = _wide(rows["k"], rows["v"], rows["g"])
    _, ends = _step(slot.read().to(wide), None, rows["k"], rows["v"], rows["g"], rows.get("beta"), seqs, 1.0)
    slot.write(ends)


def _step(
    entry: Tensor,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None,
    seqs: Seqs,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(o [T, H, V], states after the definite rows [B, H, K, V]) in entry's dtype; without q there is no o."""
    plan = seqs.memo(("glr", "step"), lambda: _plan_steps(seqs))
    wide, (_, heads, num_k, num_v), groups = entry.dtype, entry.shape, k.shape[1]
    per_group = heads // groups
    grouped = (-1, groups, per_group, num_k, num_v)
    a_TGR = g.to(wide).exp().view(-1, groups, per_group, 1, 1)
    k_TG = k.to(wide).view(-1, groups, 1, num_k, 1)
    q_TG = None if q is None else _scaled(q.to(wide), scale).view(-1, groups, 1, num_k, 1)
    v_TGR = v.to(wide).view(-1, groups, per_group, num_v)
    beta_TGR = None if beta is None else beta.to(wide).view(-1, groups, per_group, 1)
    outs: list[Tensor] = []
    ends = [] if plan.unmoved is None else [entry.index_select(0, plan.unmoved)]
    states = entry.view(grouped)
    for depth in plan.depths:
        k_n, new = _pick_rows(k_TG, depth.rows), _pick_rows(v_TGR, depth.rows)
        states = _pick_rows(states, depth.source) * _pick_rows(a_TGR, depth.rows)
        if beta_TGR is not None:
            new = _pick_rows(beta_TGR, depth.rows) * (new - (states * k_n).sum(-2))
        states = torch.addcmul(states, k_n, new.unsqueeze(-2))
        if q_TG is not None:
            outs.append((states * _pick_rows(q_TG, depth.rows)).sum(-2))
        if depth.has_ends:
            ends.append(_pick_rows(states, depth.ends).view(-1, heads, num_k, num_v))
    end = _pick_rows(ends[0] if len(ends) == 1 else torch.cat(ends), plan.end_order)
    if not outs:
        return v_TGR[:0].flatten(1, 2), end
    o = outs[0] if len(outs) == 1 else torch.cat(outs)
    return _pick_rows(o.flatten(1, 2), plan.row_order), end


# -- chunked form ------------------------------------------------------------------------------------------------------


class _ChunkPlan(NamedTuple):
    """Rows laid out as chunks [M, C], those that come i-th in their sequences together: M = sum(counts)."""

    counts: list[int]  # how many sequences have an i-th chunk; they are the first ones of `order`
    grid: Tensor | None  # [M * C] packed rows; padding repeats a row of the same sequence; None = 0, 1, 2, ...
    padding: Tensor | None  # [M, C] bool; None = there is no padding
    back: Tensor | None  # [T] where each packed row is in the grid
    order: Tensor | None  # [B] sequences by falling number of chunks
    end_order: Tensor | None  # from [ends in the order in which sequences end] to sequences


def _plan_chunks(seqs: Seqs, size: int) -> _ChunkPlan:
    first = [context // size for context in seqs.contexts]
    num = [
        -(-(context + length) // size) - start if length else 0
        for context, length, start in zip(seqs.contexts, seqs.lens, first, strict=True)
    ]
    order = sorted(range(seqs.num_seqs), key=lambda b: -num[b])
    counts = [sum(n > i for n in num) for i in range(max(num, default=0))]
    origin, low, high = [], [], []
    for i, count in enumerate(counts):
        for b in order[:count]:
            origin.append(seqs.starts[b] - seqs.contexts[b] + (first[b] + i) * size)
            low.append(seqs.starts[b])
            high.append(seqs.starts[b + 1] - 1)

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=seqs.device).view(-1, 1)

    wanted = column(origin) + torch.arange(size, device=seqs.device)
    grid = wanted.clamp(column(low), column(high))
    padding = grid != wanted
    is_plain = not bool(padding.any()) and seqs.num_seqs == 1
    real = (~padding).flatten().nonzero().squeeze(1)
    back = torch.empty(seqs.num_rows, dtype=torch.int64, device=seqs.device)
    back[grid.flatten()[real]] = real
    ended = [b for i in range(len(counts) + 1) for b in order if num[b] == i]
    return _ChunkPlan(
        counts=counts,
        grid=None if is_plain else grid.flatten(),
        padding=padding if bool(padding.any()) else None,
        back=None if is_plain else back,
        order=_index(order, seqs.num_seqs, seqs.device),
        end_order=_index(_inverse(ended), seqs.num_seqs, seqs.device),
    )


def _chunked(
    entry: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None,
    seqs: Seqs,
    scale: float,
    size: int,
) -> tuple[Tensor, Tensor]:
    """(o [T, H, V], end states [B, H, K, V]) in entry's dtype. Groups of heads stay together: keys are not copied."""
    plan = seqs.memo(("glr", "chunked", size), lambda: _plan_chunks(seqs, size))
    wide, (_, heads, num_k, num_v) = entry.dtype, entry.shape
    if not plan.counts:
        return v.new_zeros(v.shape, dtype=wide), entry
    if beta is not None and k.shape[1] < heads:
        # The solve is per head anyway, so keys of shared groups may as well be.
        q, k = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (q, k))
    groups = k.shape[1]
    per_group = heads // groups

    def lay(x: Tensor) -> Tensor:
        """Rows [T, n, ...] as chunks [M, n, C, ...]."""
        return _pick_rows(x, plan.grid).to(wide).reshape(-1, size, *x.shape[1:]).transpose(1, 2)

    q_MGCK, k_MGCK, v_MHCV, g_MHC = _scaled(lay(q), scale), lay(k), lay(v), lay(g)
    beta_MHC1 = None if beta is None else lay(beta).unsqueeze(-1)
    if plan.padding is not None:  # such a row leaves the state as it is
        k_MGCK = k_MGCK.masked_fill(plan.padding[:, None, :, None], 0.0)
        g_MHC = g_MHC.masked_fill(plan.padding[:, None, :], 0.0)

    gamma = _pair_decay(g_MHC)
    from_entry = g_MHC.cumsum(-1).exp()  # e^{G_t}
    to_end = gamma[..., -1, :].unsqueeze(-1)  # e^{G_C - G_t}
    over_chunk = from_entry[..., -1].view(-1, groups, 1, per_group, 1)
    grouped = (-1, groups, per_group, size, size)
    scores = (q_MGCK @ k_MGCK.mT).unsqueeze(2) * gamma.view(grouped)
    if beta_MHC1 is None:
        W = None
        local = scores.flatten(1, 2) @ v_MHCV
        new = v_MHCV
    else:
        system = beta_MHC1 * (k_MGCK @ k_MGCK.mT) * gamma
        sides = beta_MHC1 * torch.cat([v_MHCV, from_entry.unsqueeze(-1) * k_MGCK], -1)
        solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
        new, W = solved.split_with_sizes([num_v, num_k], -1)
        local = None
    by_head = (-1, groups, per_group, size, num_v)

    # States [b, G, K, R, V]: the heads of a group side by side, so that one product serves them all.
    states = _pick_rows(entry, plan.order).view(-1, groups, per_group, num_k, num_v).transpose(2, 3).contiguous()
    ends, outs = [states[plan.counts[0] :]], []
    first = 0
    for i, count in enumerate(plan.counts):
        now = slice(first, first + count)
        first += count
        states = states[:count]
        flat = states.flatten(3)
        new_n = new[now] if W is None else new[now] - W[now] @ flat
        local_n = local[now] if local is not None else scores[now].flatten(1, 2) @ new_n
        read = (q_MGCK[now] @ flat).view(count, groups, size, per_group, num_v).transpose(2, 3)
        outs.append(torch.addcmul(local_n, read.flatten(1, 2), from_entry[now].unsqueeze(-1)))
        kept = (new_n * to_end[now]).view(by_head).transpose(2, 3).flatten(3)
        states = states * over_chunk[now] + (k_MGCK[now].mT @ kept).view(states.shape)
        ends.append(states[plan.counts[i + 1] if i + 1 < len(plan.counts) else 0 :])
    o = _pick_rows(torch.cat(outs).transpose(1, 2).flatten(0, 1), plan.back)
    end = _pick_rows(torch.cat(ends), plan.end_order)
    return o, end.transpose(2, 3).reshape(entry.shape)


def _pair_decay(g: Tensor) -> Tensor:
    """Gamma [..., C, C] of g [..., C]: the decay from row s to row t >= s, 0 above the diagonal."""
    size = g.shape[-1]
    upper = torch.ones(size, size, dtype=torch.bool, device=g.device).triu()
    steps = g.unsqueeze(-1).expand(*g.shape, size).masked_fill(upper, 0.0)
    return steps.cumsum(-2).exp().tril()
