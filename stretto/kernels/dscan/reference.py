"""The specification of the diagonal scan: one row at a time in fp64; autograd differentiates."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

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
    """See `stretto.kernels.dscan.dscan`; `chunk` only says how to compute, so it is not used."""
    size = (seqs.num_seqs, B.shape[1], x.shape[1])
    entry = x.new_zeros(size, dtype=torch.float64) if state is None else state.read()
    after, ends = _run(entry, x, dt, B, A_log, seqs)
    if state is not None:
        state.write(ends)
        if seqs.has_drafts:
            state.record(partial(_replay, A_log), {"x": x, "dt": dt, "B": B})
    y = torch.einsum("tsf,ts->tf", after, C.double()) + D.double() * x.double()
    return y.to(x.dtype)


def _replay(A_log: Tensor, slot: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    slot.write(_run(slot.read(), rows["x"], rows["dt"], rows["B"], A_log, seqs)[1])


def _run(entry: Tensor, x: Tensor, dt: Tensor, B: Tensor, A_log: Tensor, seqs: Seqs) -> tuple[Tensor, Tensor]:
    """(the states after every row [T, S, F], and after the definite rows [B, S, F]), both fp64."""
    entry, x, dt, B = (part.double() for part in (entry, x, dt, B))
    A_SF = -A_log.double().exp().T
    states, ends = [entry[:0]], [entry[:0]]
    for b in range(seqs.num_seqs):
        after: list[Tensor] = []
        for row, parent in enumerate(seqs.tree(b).parents):
            t = seqs.starts[b] + row
            before = after[parent] if parent >= 0 else entry[b]
            after.append((dt[t] * A_SF).exp() * before + torch.outer(B[t], dt[t] * x[t]))
            states.append(after[row][None])
        ends.append((after[seqs.definite[b] - 1] if seqs.definite[b] else entry[b])[None])
    return torch.cat(states), torch.cat(ends)
