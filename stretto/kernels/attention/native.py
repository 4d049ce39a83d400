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
from stretto.kernels.attention.softmax import Softmax
from stretto.kernels.native.buffers import ALL_ROWS, aligned
from stretto.kernels.native.guard import HEADS_APART, NotRecordable, require
from stretto.kernels.native.library import Fields
from stretto.kernels.native.paged import format_code, scales
from stretto.kernels.native.tape import Tape, beyond, current, why_not_here

PARTIAL_ROWS = 16  # rows with the longest context whose partial results find room; more are not shared out


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """A tape must be there to record on; fp32, `MAX_SIZE` elements a head, `MAX_GROUP` heads that share keys."""
    why = why_not_here()
    if why is None and any(x.dtype != torch.float32 for x in (q, k, v)):
        why = "it computes in fp32"
    why = why or beyond("MAX_SIZE", max(k.shape[2], v.shape[2]), "elements of a head")
    return why or beyond("MAX_GROUP", q.shape[1] // k.shape[1], "query heads that share a key head")


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, seqs: Seqs, kv: tuple[Paged, Paged] | None, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """See `stretto.kernels.attention.attention`; `seqs` is a placeholder while a tape is recorded.

    q, k, v: rows whose heads are contiguous. kv: `PageRef`s in a format that the kernels know; of where they
    lie, only the number of the group is used. Keys lie lane by lane.
    Raises NotRecordable for any other cache, and without one.
    """
    tape, (_, heads, size), (_, groups, value_size) = current(), q.shape, v.shape
    assert k.shape[1:] == (groups, size) and heads % groups == 0 and softmax.window != 0
    for x in (q, k, v):
        require(tape.kind(x) == ALL_ROWS and x[0].is_contiguous(), HEADS_APART)
    sinks = softmax.sinks
    require(sinks is None or (sinks.dtype == torch.float32 and not tape.holds(sinks)), "has sinks of the rows")
    keys, values, code = _refs(tape, kv)
    assert keys.pages.shape[2:] == k.shape[1:] and values.pages.shape == (*keys.pages.shape[:3], value_size)
    pages: Fields = {
        "format": code,
        "group": keys.where.group,
        "k_pages": keys.pages,
        "v_pages": values.pages,
        "k_scales": scales(keys),
        "v_scales": scales(values),
    }
    tape.emit("kv_append", key_size=groups * size, value_size=groups * value_size, num_heads=groups, k=k, v=v, **pages)
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
        "scale": softmax.scale,
        "softcap": softmax.softcap or 0.0,
        "window": min(softmax.window or 0, 2**31 - 1),
        "coarse_prompts": tape.coarse_prompts,
        "q": q,
        "sinks": sinks,
        **pages,
        "o": o,
        "lse": lse,
        "partials": partials,
        "num_partials": room,
    }
    tape.emit("attention", **fields)
    if room:
        tape.emit("attention_merge", **fields)
    return o, lse


def _refs(tape: Tape, kv: tuple[Paged, Paged] | None) -> tuple[PageRef, PageRef, int]:
    """The keys and the values, which lie as the kernels read them, and the number of their format."""
    if kv is None:
        raise NotRecordable("attends without a cache")
    keys, values = kv
    if not (isinstance(keys, PageRef) and isinstance(values, PageRef)):
        raise NotRecordable(f"attends over a {type(keys).__name__}")
    require(keys.format == values.format, f"attends over pages of {keys.format.name} and {values.format.name}")
    code = format_code(tape, keys)
    by_lanes = (part.movedim(1, -1).is_contiguous() for part in (keys.pages, *keys.sides))
    by_tokens = (part.is_contiguous() for part in (values.pages, *values.sides))
    lies_so = keys.pages.shape[1] == PAGE_SIZE and all(by_lanes) and all(by_tokens)
    require(lies_so, "attends to keys that do not lie lane by lane, or values that do not lie token by token")
    assert keys.where.group == values.where.group, "keys and values share a page group"
    return keys, values, code
