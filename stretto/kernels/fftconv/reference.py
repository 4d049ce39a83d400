"""Long convolution, the specification: row by row, tap by tap, back through the ancestors and then the context."""

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
    out: list[Tensor] = []
    for b in range(seqs.num_seqs):
        if history is None:
            held, context = u[seqs.starts[b] : seqs.starts[b + 1]].to(wide), 0
        else:
            held, context = history.read(b, seqs).to(wide), seqs.contexts[b]
        for path in seqs.tree(b).paths:
            inputs = [*range(context), *(context + row for row in path)]  # where they are stored, oldest first
            y = torch.zeros_like(held[0])
            for lag, at in enumerate(reversed(inputs[-taps_DL.shape[1] :])):
                y = y + taps_DL[:, lag] * held[at]
            out.append(y)
    return torch.stack(out).to(u.dtype) if out else u.clone()
