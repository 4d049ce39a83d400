"""The specification of the short convolution: one row at a time in fp64, along the row's ancestors."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """It always can."""
    return None


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    seqs: Seqs,
    state: Slot | None,
    activation: Literal["silu"] | None,
) -> Tensor:
    """See `stretto.kernels.short_conv.short_conv`."""
    keep = weight.shape[1] - 1
    entry = x.new_zeros((seqs.num_seqs, keep, x.shape[1])) if state is None else state.read()
    out, ends = [x.new_zeros((0, x.shape[1]), dtype=torch.float64)], [entry[:0]]
    for b in range(seqs.num_seqs):
        histories: list[Tensor] = []  # the inputs up to and with each row, the carried tail first
        for row, parent in enumerate(seqs.tree(b).parents):
            before = histories[parent] if parent >= 0 else entry[b]
            histories.append(torch.cat([before, x[seqs.starts[b] + row][None].to(before.dtype)]))
            taps = histories[row][len(histories[row]) - keep - 1 :]
            y = (taps.double() * weight.double().T).sum(0)
            out.append((y if bias is None else y + bias.double())[None])
        last = histories[seqs.definite[b] - 1] if seqs.definite[b] else entry[b]
        ends.append(last[len(last) - keep :][None])
    if state is not None:
        state.write(torch.cat(ends))
        if seqs.has_drafts:
            state.record(_replay, {"x": x})
    y = torch.cat(out)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def _replay(slot: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    tails = slot.read()
    new = rows["x"].to(tails.dtype).split_with_sizes(list(seqs.lens))
    joined = [torch.cat([tail, inputs]) for tail, inputs in zip(tails, new, strict=True)]
    slot.write(torch.stack([inputs[len(inputs) - tails.shape[1] :] for inputs in joined]))
