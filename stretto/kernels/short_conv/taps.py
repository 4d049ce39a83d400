"""Where a causal filter reads: one index table for all channels. Taps follow ancestors, so draft trees need nothing
special.

Indices point into `cat([tail, x])`, with `tail` [B * (width - 1)] the inputs before each sequence's rows, oldest first,
and `x` [T] the rows.
"""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs


def taps(seqs: Seqs, width: int) -> Tensor:
    """[T, width] int64: where each row reads, oldest first, the row itself last; all layers share it."""
    return seqs.memo(("taps", width), lambda: _taps(seqs, width))


def _taps(seqs: Seqs, width: int) -> Tensor:
    keep, base, table = width - 1, seqs.num_seqs * (width - 1), list[list[int]]()
    for b in range(seqs.num_seqs):
        tail = list(range(b * keep, (b + 1) * keep))
        histories: list[list[int]] = []
        for row, parent in enumerate(seqs.tree(b).parents):
            before = histories[parent] if parent >= 0 else tail
            histories.append([*before[len(before) - keep :], base + seqs.starts[b] + row])
        table += histories
    return torch.tensor(table, dtype=torch.int64, device=seqs.device).view(seqs.num_rows, width)


def end_taps(seqs: Seqs, width: int) -> Tensor:
    """[B, width - 1] int64: the tail after the definite rows of every sequence; all layers share it."""
    return seqs.memo(("end_taps", width), lambda: _end_taps(seqs, width))


def _end_taps(seqs: Seqs, width: int) -> Tensor:
    keep, base, table = width - 1, seqs.num_seqs * (width - 1), list[list[int]]()
    for b, rows in enumerate(seqs.definite):
        first = base + seqs.starts[b]
        history = [*range(b * keep, (b + 1) * keep), *range(first + max(0, rows - keep), first + rows)]
        table.append(history[len(history) - keep :])
    return torch.tensor(table, dtype=torch.int64, device=seqs.device).view(seqs.num_seqs, keep)
