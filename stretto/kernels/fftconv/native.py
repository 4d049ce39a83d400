"""Long convolution in step form for every row (fftconv.cpp), recorded on the tape.

Inputs go to their pages first and are read from there. There is no chunked form: a row costs min(context, L) inputs in
prefill, too, and has the same bits everywhere.
"""

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged, PageRef
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.guard import NotRecordable, require
from stretto.kernels.native.tape import current, why_not_here


def why_not(u: Tensor, kernel: Tensor) -> str | None:
    """A tape must be there to record on; fp32 rows."""
    return why_not_here() or (None if u.dtype == kernel.dtype == torch.float32 else "it computes in fp32")


def fftconv(u: Tensor, kernel: Tensor, *, seqs: Seqs, history: Paged | None) -> Tensor:
    """See `stretto.kernels.fftconv.fftconv`; `seqs` is a placeholder while a tape is recorded. kernel: a constant."""
    tape, (channels, num_taps) = current(), kernel.shape
    require(tape.kind(u) == ALL_ROWS and u.stride(1) == 1, "convolves what does not lie row by row")
    require(not tape.holds(kernel), "has taps that depend on the rows")
    if not isinstance(history, PageRef):
        raise NotRecordable("convolves without pages")
    pages = history.pages
    is_bf16 = pages.dtype == torch.bfloat16
    require((is_bf16 or pages.dtype == torch.float32) and pages.is_contiguous(), f"reads pages of {pages.dtype}")
    assert pages.shape[2:] == (channels,)
    taps, y = tape.padded(kernel.T), tape.empty(ALL_ROWS, channels)
    kept = {"is_bf16": is_bf16, "group": history.where.group}
    tape.emit("kv_append", value_size=channels, **kept, v=u, v_pages=pages)
    sizes = {"channels": channels, "num_taps": num_taps, "taps_width": taps.shape[1]}
    tape.emit("fftconv", **sizes, **kept, taps=taps, pages=pages, y=y)
    return y
