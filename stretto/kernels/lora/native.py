"""Two operations beside each product that adapters may change (lora.cpp). They read the table and the adapters of the
rows when they run, so that loading an adapter is writing to the table, and needs no other program."""

from typing import Any

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.native.guard import require
from stretto.kernels.native.library import Fields
from stretto.kernels.native.tape import current, why_not_here


def why_not(x: Tensor, site: Any) -> str | None:
    """Native kernels must read the table, and a tape must be there to record on."""
    return "the table is torch's" if site.table.memory is None else why_not_here()


def add_lora(x_TD: Tensor, y_TD: Tensor, site: Any, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.lora.add_lora`; x and y fp32 (rows contiguous). Every row is reproducible."""
    require(x_TD.dtype == torch.float32 and x_TD.stride(1) == 1, "adapts what are no fp32 rows")
    assert y_TD.dtype == torch.float32 and y_TD.stride(1) == 1
    tape, num_segments = current(), len(site.widths)
    t = tape.like(x_TD, num_segments * site.table.max_rank)
    shape: Fields = {
        "rows": tape.rows(x_TD),
        "num_segments": num_segments,
        "max_rank": site.table.max_rank,
        "table_stride": site.table.num_segments,
        "table": site.table.address(site.first),
    }
    tape.emit("lora_down", **shape, d_in=site.d_in, x=x_TD, t=t)
    tape.emit("lora_up", **shape, d_out=sum(site.widths), t=t, y=y_TD)
    return y_TD
