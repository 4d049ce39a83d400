"""Diagonal scan in torch operations: any device, differentiable.

Rows are taken by their depth below the context, those of all sequences and tree branches together, in blocks of
`chunk` rows or one depth. What does not need the state (decays, inputs, reading it) is computed for a whole block;
between depths there is one multiply-add. The states of a row are in memory while its block is computed: gradients
compute a block again from the states it started with.

All of it is elementwise or a plain sum over S, whose order does not depend on the number of rows, so there is one form
for decoding, drafts, replay, prefill and training, and it has the same bits in all of them.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stretto.core.seqs import Seqs
from stretto.core.state import Slot


def why_not(x: Tensor, B: Tensor) -> str | None:
    """It always can."""
    return None


def dscan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    A_log: Tensor,
    D: Tensor,
    seqs: Seqs,
    state: Slot | None,
    chunk: int,
) -> Tensor:
    """See `stretto.kernels.dscan.dscan`."""
    wide = torch.promote_types(torch.promote_types(x.dtype, dt.dtype), torch.float32)
    size = (seqs.num_seqs, B.shape[1], x.shape[1])
    entry = x.new_zeros(size, dtype=wide) if state is None else state.read().to(wide)
    A_SF = -A_log.to(wide).exp().T.contiguous()
    y, ends = _scan(entry, x, dt, B, C, A_SF, seqs, chunk)
    if state is not None:
        state.write(ends)
        if seqs.has_drafts:
            rows = seqs.num_step_rows
            state.record(partial(_replay, A_SF, chunk), {"x": x[:rows], "dt": dt[:rows], "B": B[:rows]})
    return torch.addcmul(y, D.to(wide), x.to(wide)).to(x.dtype)


def _replay(A_SF: Tensor, chunk: int, slot: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    _, ends = _scan(slot.read().to(A_SF.dtype), rows["x"], rows["dt"], rows["B"], None, A_SF, seqs, chunk)
    slot.write(ends)


class _Block(NamedTuple):
    """Consecutive depths. An index of None stands for everything in order."""

    rows: slice | Tensor  # packed rows, by depth
    counts: list[int]  # rows of each depth
    sources: list[
        Tensor | None
    ]  # per depth and row: its parent among the rows of the depth above (first: its sequence)
    ends: Tensor | None  # which of the rows are the last definite ones of their sequence; None: none


class _Plan(NamedTuple):
    blocks: list[_Block]
    row_order: Tensor | None  # from rows by depth to packed rows
    end_order: Tensor | None  # from [entry states without definite rows, ends by depth] to sequences
    unmoved: Tensor | None  # sequences without definite rows; None = there are none


def _plan(seqs: Seqs, chunk: int) -> _Plan:
    rows: list[list[int]] = []
    sources: list[list[int]] = []
    last_of: dict[int, int] = {}  # packed row -> the sequence whose last definite row it is
    for b, definite in enumerate(seqs.definite):
        if definite:
            last_of[seqs.starts[b] + definite - 1] = b
        places: list[int] = []
        for row, (parent, depth) in enumerate(zip(seqs.tree(b).parents, seqs.tree(b).depths, strict=True)):
            if depth == len(rows):
                rows.append([])
                sources.append([])
            sources[depth].append(places[parent] if parent >= 0 else b)
            places.append(len(rows[depth]))
            rows[depth].append(seqs.starts[b] + row)
    counts, device = [len(level) for level in rows], seqs.device
    indices = [_index(s, n, device) for s, n in zip(sources, [seqs.num_seqs, *counts], strict=False)]
    unmoved = [b for b, definite in enumerate(seqs.definite) if not definite]
    by_depth = [row for level in rows for row in level]
    by_end = unmoved + [last_of[row] for row in by_depth if row in last_of]
    blocks, depth, first = list[_Block](), 0, 0
    while depth < len(counts):
        stop, size = depth + 1, counts[depth]
        while stop < len(counts) and size + counts[stop] <= chunk:
            size += counts[stop]
            stop += 1
        mine = by_depth[first : first + size]
        ends = [i for i, row in enumerate(mine) if row in last_of]
        is_run = mine == list(range(mine[0], mine[0] + size))
        blocks.append(
            _Block(
                slice(mine[0], mine[0] + size) if is_run else torch.tensor(mine, device=device),
                counts[depth:stop],
                indices[depth:stop],
                torch.tensor(ends, device=device) if ends else None,
            )
        )
        depth, first = stop, first + size
    return _Plan(
        blocks=blocks,
        row_order=_index(_inverse(by_depth), seqs.num_rows, device),
        end_order=_index(_inverse(by_end), seqs.num_seqs, device),
        unmoved=torch.tensor(unmoved, device=device) if unmoved else None,
    )


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _index(values: list[int], length: int, device: torch.device | str) -> Tensor | None:
    """`values` as an index into `length` rows; None if it would change nothing."""
    return None if values == list(range(length)) else torch.tensor(values, dtype=torch.int64, device=device)


def _pick_rows(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(0, index)


def _scan(
    entry: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor | None, A_SF: Tensor, seqs: Seqs, chunk: int
) -> tuple[Tensor, Tensor]:
    """(y without D x [T, F], states after the definite rows [B, S, F]) in entry's dtype; without C, y is nothing."""
    plan = seqs.memo(("dscan", chunk), lambda: _plan(seqs, chunk))
    outs, states = [entry.new_zeros((0, x.shape[1]))], entry
    ends = [entry[:0] if plan.unmoved is None else entry.index_select(0, plan.unmoved)]
    again = partial(checkpoint, _block, use_reentrant=False, preserve_rng_state=False)
    for block in plan.blocks:
        mine = (states, x[block.rows], dt[block.rows], B[block.rows], None if C is None else C[block.rows])
        y, states, end = (again if torch.is_grad_enabled() else _block)(*mine, A_SF, block)
        outs.append(y)
        ends.append(end)
    y = torch.cat(outs)
    return _pick_rows(y, plan.row_order) if len(y) else y, _pick_rows(torch.cat(ends), plan.end_order)


def _block(
    states: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor | None, A_SF: Tensor, block: _Block
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [R, F], the states after the rows of the last depth, the states after the rows `ends`)."""
    wide = states.dtype
    x, dt = x.to(wide), dt.to(wide)
    decays = (dt.unsqueeze(1) * A_SF).exp().split_with_sizes(block.counts)
    inputs = (B.to(wide).unsqueeze(2) * (dt * x).unsqueeze(1)).split_with_sizes(block.counts)
    after: list[Tensor] = []
    for decay, new, source in zip(decays, inputs, block.sources, strict=True):
        states = torch.addcmul(new, decay, _pick_rows(states, source))
        after.append(states)
    after_RSF = after[0] if len(after) == 1 else torch.cat(after)
    y = x[:0] if C is None else (after_RSF * C.to(wide).unsqueeze(2)).sum(1)
    return y, states, after_RSF[:0] if block.ends is None else after_RSF.index_select(0, block.ends)
