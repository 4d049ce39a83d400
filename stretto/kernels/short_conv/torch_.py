"""Short convolution as W scaled copies, added in tap order: any device, differentiable.

`conv1d` wants channels first, which costs two transposes, and its order of summation changes with the shape; W passes
of multiply-add over rows are faster and give step and chunked rows the same bits. Step rows gather their taps through
`Seqs.taps`, which follows ancestors; chunked rows read shifted slices of [tail, inputs].
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot
from stretto.kernels.pointwise import silu
from stretto.kernels.short_conv.taps import end_taps, taps


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
    width = weight.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    tails = x.new_zeros((seqs.num_seqs, width - 1, x.shape[1])) if state is None else state.read().to(x.dtype)
    taps_WC = weight.t().to(wide).contiguous()
    offset_C = None if bias is None else bias.to(wide)
    cut, rows = seqs.num_step, seqs.num_step_rows
    outs: list[Tensor] = []
    ends: list[Tensor] = []
    if cut:
        inputs = torch.cat([tails[:cut].flatten(0, 1), x[:rows]])
        reads_TWC = inputs[taps(seqs.step_part, width)].to(wide)
        outs.append(_sum([reads_TWC[:, j] for j in range(width)], taps_WC, offset_C))
        ends.append(inputs[end_taps(seqs.step_part, width)])
        if state is not None and seqs.has_drafts:
            state.record(_replay, {"x": x[:rows]})
    if cut < seqs.num_seqs or not cut:
        part = seqs.chunk_part
        pieces = [
            piece
            for tail, new in zip(tails[cut:], x[rows:].split_with_sizes(list(part.lens)), strict=True)
            for piece in (tail, new)
        ]  # fmt: skip
        padded = torch.cat(pieces).to(wide) if pieces else x.to(wide)
        length = max(0, len(padded) - width + 1)
        y = _sum([padded[j : j + length] for j in range(width)], taps_WC, offset_C)
        firsts = [start + b * (width - 1) for b, start in enumerate(part.starts[:-1])]
        if len(firsts) != 1:
            y = torch.cat([y[first : first + n] for first, n in zip(firsts, part.lens, strict=True)] or [y])
        outs.append(y)
        if state is not None:
            inputs = torch.cat([tails[cut:].flatten(0, 1), x[rows:]])
            ends.append(inputs[end_taps(part, width)])
    if state is not None:
        state.write(ends[0] if len(ends) == 1 else torch.cat(ends))
    y = outs[0] if len(outs) == 1 else torch.cat(outs)
    return (silu(y) if activation == "silu" else y).to(x.dtype)


def _replay(slot: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    tails = slot.read()
    inputs = torch.cat([tails.flatten(0, 1), rows["x"].to(tails.dtype)])
    slot.write(inputs[end_taps(seqs, tails.shape[1] + 1)])


def _sum(reads: list[Tensor], taps_WC: Tensor, offset_C: Tensor | None) -> Tensor:
    """offset + sum_j reads[j] * taps[j], in this order."""
    y = reads[0] * taps_WC[0] if offset_C is None else torch.addcmul(offset_C, reads[0], taps_WC[0])
    for read, tap_C in zip(reads[1:], taps_WC[1:], strict=True):
        y = torch.addcmul(y, read, tap_C)
    return y
