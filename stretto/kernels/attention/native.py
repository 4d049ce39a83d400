"""Attention over pages of keys and values (attention.cpp), recorded on the tape.

Three operations: this call's keys and values go to their pages, every row attends, and rows that were shared out over
several threads are put together. The bits of a row depend on its query and on the keys that it sees: they are the same
in decoding, in verification (of trees, too) and in prefill.
"""

import torch
from torch import Tensor

from stretto.core.pages import PAGE_SIZE
from stretto.core.seqs import Seqs
from stretto.core.state import Paged, PageRef
from stretto.kernels.native.buffers import ALL_ROWS, aligned
from stretto.kernels.native.guard import HEADS_APART, NotRecordable, require
from stretto.kernels.native.library import Fields
from stretto.kernels.native.tape import beyond, current, why_not_here

PARTIAL_ROWS = 16  # rows with the longest context whose partial results find room; more are not shared out


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """A tape must be there to record on; fp32, `MAX_SIZE` elements a head, `MAX_GROUP` heads that share keys."""
    why = why_not_here()
    if why is None and any(x.dtype != torch.float32 for x in (q, k, v)):
        why = "it computes in fp32"
    why = why or beyond("MAX_SIZE", max(k.shape[2], v.shape[2]), "elements of a head")
    return why or beyond("MAX_GROUP", q.shape[1] // k.shape[1], "query heads that share a key head")


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, seqs: Seqs, kv: tuple[Paged, Paged] | None, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """See `stretto.kernels.attention.attention`; `seqs` is a placeholder while a tape is recorded.

    q, k, v: rows whose heads are contiguous. kv: `PageRef`s of bf16 or fp32; of their fields, only `pages` and the
    number of the group are used, and the keys lie lane by lane.
    Raises NotRecordable for any other cache, and without one.
    """
    tape, (_, heads, size), (_, groups, value_size) = current(), q.shape, v.shape
    assert k.shape[1:] == (groups, size) and heads % groups == 0 and window != 0
    for x in (q, k, v):
        require(tape.kind(x) == ALL_ROWS and x[0].is_contiguous(), HEADS_APART)
    keys, values, group = _pages(kv)
    is_bf16 = keys.dtype == torch.bfloat16
    assert keys.shape[2:] == k.shape[1:] and values.shape == (*keys.shape[:3], value_size)
    sizes: Fields = {"key_size": groups * size, "value_size": groups * value_size}
    tape.emit("kv_append", **sizes, is_bf16=is_bf16, group=group, k=k, v=v, k_pages=keys, v_pages=values)
    o, lse = tape.like(q, heads, value_size), tape.like(q, heads)
    splits = -(-tape.context // tape.library.limit("SPLIT"))
    room, partials = PARTIAL_ROWS * splits if splits > 1 else 0, None
    if room:
        shape = (room, heads, value_size + 2)  # memory that all layers share, and that is taken when it is written
        partials = tape.constant(("partial attention", shape), lambda: aligned(shape, torch.float32))
    fields: Fields = {
        "num_heads": heads,
        "num_kv_heads": groups,
        "key_size": size,
        "value_size": value_size,
        "is_bf16": is_bf16,
        "scale": scale,
        "window": min(window or 0, 2**31 - 1),
        "coarse_prompts": tape.coarse_prompts,
        "group": group,
        "q": q,
        "k_pages": keys,
        "v_pages": values,
        "o": o,
        "lse": lse,
        "partials": partials,
        "num_partials": room,
    }
    tape.emit("attention", **fields)
    if room:
        tape.emit("attention_merge", **fields)
    return o, lse


def _pages(kv: tuple[Paged, Paged] | None) -> tuple[Tensor, Tensor, int]:
    """The pages of keys and of values, and the number of their group."""
    if kv is None:
        raise NotRecordable("attends without a cache")
    keys, values = kv
    if not (isinstance(keys, PageRef) and isinstance(values, PageRef)):
        raise NotRecordable(f"attends over a {type(keys).__name__}")
    pages = keys.pages, values.pages
    if pages[0].dtype != pages[1].dtype or pages[0].dtype not in (torch.bfloat16, torch.float32):
        raise NotRecordable(f"attends over pages of {pages[0].dtype} and {pages[1].dtype}")
    lies_so = pages[0].shape[1] == PAGE_SIZE and pages[0].movedim(1, -1).is_contiguous() and pages[1].is_contiguous()
    require(lies_so, "attends to keys that do not lie lane by lane, or values that do not lie token by token")
    assert keys.where.group == values.where.group, "keys and values share a page group"
    return *pages, keys.where.group
