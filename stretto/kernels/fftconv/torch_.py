"""Long convolution: FFT for chunked rows, direct sums for step rows. Any device, differentiable.

Chunked sequences of equal length are transformed together; their transform is a little longer than inputs + taps - 1,
with small prime factors. A step row multiplies the last L inputs of its path with the kernel and adds them up in one
reduction over positions, whose order depends on the position alone.
"""

from collections import defaultdict

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged


def why_not(u: Tensor, kernel: Tensor) -> str | None:
    """It always can."""
    return None


def fftconv(u: Tensor, kernel: Tensor, *, seqs: Seqs, history: Paged | None) -> Tensor:
    """See `stretto.kernels.fftconv.fftconv`."""
    if history is not None:
        history.append(u, seqs)
    wide = torch.promote_types(torch.promote_types(u.dtype, kernel.dtype), torch.float32)
    taps_DL = kernel.to(wide)
    parts = u.split_with_sizes(list(seqs.lens))
    outs: list[Tensor] = [part.to(wide) for part in parts]

    def inputs(b: int) -> tuple[Tensor, int]:
        """What sequence b has read, in storage order, and how many of these rows are context."""
        return (parts[b], 0) if history is None else (history.read(b, seqs), seqs.contexts[b])

    step = [b for b in range(seqs.num_step) if seqs.lens[b]]
    if step:
        longest = max(len(inputs(b)[0]) if history is None else seqs.contexts[b] + seqs.lens[b] for b in step)
        oldest_first_LD = taps_DL[:, :longest].flip(1).t().contiguous()
        for b in step:
            outs[b] = _step(*inputs(b), oldest_first_LD, seqs, b)
    same: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for b in range(seqs.num_step, seqs.num_seqs):
        if seqs.lens[b]:
            same[0 if history is None else seqs.contexts[b], seqs.lens[b]].append(b)
    for (context, rows), group in same.items():
        first = max(0, context - taps_DL.shape[1] + 1)
        read_BMD = torch.stack([inputs(b)[0][first:] for b in group]).to(wide)
        for b, y in zip(group, _causal(read_BMD, taps_DL)[:, -rows:].unbind(0), strict=True):
            outs[b] = y
    return torch.cat(outs).to(u.dtype) if outs else u.clone()


def _step(held: Tensor, context: int, oldest_first_LD: Tensor, seqs: Seqs, b: int) -> Tensor:
    """[rows, D] of one sequence: one reduction per row."""
    num_taps, y = len(oldest_first_LD), list[Tensor]()
    for row, path in enumerate(_paths(seqs, b)):
        if path is None:
            last = held[max(0, context + row + 1 - num_taps) : context + row + 1]
        else:
            own = path[-num_taps:]
            last = torch.cat([held[max(0, context - num_taps + len(own)) : context], held[own + context]])
        y.append((last.to(oldest_first_LD.dtype) * oldest_first_LD[num_taps - len(last) :]).sum(0))
    return torch.stack(y)


def _paths(seqs: Seqs, b: int) -> list[Tensor | None]:
    """Per row of sequence b the rows from the context to it, None where these are all rows before it."""

    def make() -> list[Tensor | None]:
        return [None if len(p) == row + 1 else seqs._tensor(p) for row, p in enumerate(seqs.tree(b).paths)]

    return [None] * seqs.lens[b] if seqs.trees[b] is None else seqs.memo(("paths", b), make)


def _causal(u_BMD: Tensor, taps_DL: Tensor) -> Tensor:
    """[B, M, D]: the convolution of whole sequences."""
    length = u_BMD.shape[1]
    taps_DL = taps_DL[:, :length]
    size = _fast_size(length + taps_DL.shape[1] - 1)
    product: Tensor = torch.fft.rfft(u_BMD.transpose(1, 2), size) * torch.fft.rfft(taps_DL, size)
    y_BDM: Tensor = torch.fft.irfft(product, size)[..., :length]
    return y_BDM.transpose(1, 2)


def _fast_size(n: int) -> int:
    """The smallest even number >= n whose prime factors are 2, 3 and 5."""
    sizes: list[int] = []
    five = 1
    while five < 2 * n:
        odd = five
        while odd < 2 * n:
            sizes.append(odd << max(1, (-(-n // odd) - 1).bit_length()))
            odd *= 3
        five *= 5
    return min(sizes)
