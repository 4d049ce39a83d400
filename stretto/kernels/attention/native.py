"""Attention over pages of keys and values (src/attention.cpp), recorded on the tape.

Three operations: this call's keys and values go to their pages, every row attends, and rows that were shared out over
several threads are put together. The bits of a row depend on its query and on the keys that it sees: they are the same
in decoding, in verification (of trees, too) and in prefill.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Paged, PageRef
from stretto.kernels.native.tape import ALL_ROWS, NotRecordable, aligned, current, why_not_here

PAGE_SIZE = 16  # tokens, as in src/op.h
SPLIT = 256  # keys of one softmax, as in src/attention_tiles.h
MAX_SIZE, MAX_GROUP = 256, 128  # of a head; of the query heads that share a key head
PARTIAL_ROWS = 16  # rows with the longest context whose partial results find room; more are not shared out


class _AppendArgs(ctypes.Structure):
    _fields_ = [
        ("key_size", c_int32),
        ("value_size", c_int32),
        ("is_bf16", c_int32),
        ("unused", c_int32),
        ("k", c_void_p),
        ("k_stride", c_int64),
        ("v", c_void_p),
        ("v_stride", c_int64),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
    ]


class _AttentionArgs(ctypes.Structure):
    _fields_ = [
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("key_size", c_int32),
        ("value_size", c_int32),
        ("is_bf16", c_int32),
        ("scale", c_float),
        ("window", c_int32),
        ("coarse_prompts", c_int32),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("o", c_void_p),
        ("lse", c_void_p),
        ("partials", c_void_p),
        ("num_partials", c_int64),
    ]


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """fp32, heads of at most 256 elements, and a tape must be there to record on."""
    if any(x.dtype != torch.float32 for x in (q, k, v)):
        return "it computes in fp32"
    if max(k.shape[2], v.shape[2]) > MAX_SIZE:
        return f"heads have more than {MAX_SIZE} elements"
    if q.shape[1] > MAX_GROUP * k.shape[1]:
        return f"more than {MAX_GROUP} query heads share a key head"
    return why_not_here()


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, seqs: Seqs, kv: tuple[Paged, Paged] | None, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """See `stretto.kernels.attention.attention`; `seqs` is a placeholder while a tape is recorded.

    q, k, v: rows whose heads are contiguous. kv: `PageRef`s of bf16 or fp32; of their fields, only `pages` is used,
    and the keys lie lane by lane.
    Raises NotRecordable for any other cache, and without one.
    """
    tape, (_, heads, size), (_, groups, value_size) = current(), q.shape, v.shape
    assert k.shape[1:] == (groups, size) and heads % groups == 0 and window != 0
    for x in (q, k, v):
        assert tape.rows(x).kind == ALL_ROWS and x[0].is_contiguous(), "the heads of a row lie side by side"
    keys, values = _pages(kv)
    is_bf16 = keys.dtype == torch.bfloat16
    assert keys.shape[2:] == k.shape[1:] and values.shape == (*keys.shape[:3], value_size)
    append = _AppendArgs(
        groups * size,
        groups * value_size,
        is_bf16,
        0,
        k.data_ptr(),
        k.stride(0),
        v.data_ptr(),
        v.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
    )
    o, lse = tape.like(q, heads, value_size), tape.like(q, heads)
    splits = -(-tape.context // SPLIT)
    room = PARTIAL_ROWS * splits if splits > 1 else 0
    args = _AttentionArgs(
        heads,
        groups,
        size,
        value_size,
        is_bf16,
        scale,
        min(window or 0, 2**31 - 1),
        tape.coarse_prompts,
        q.data_ptr(),
        q.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        o.data_ptr(),
        lse.data_ptr(),
        None,
        room,
    )
    tape.emit("kv_append", append, keys, values)
    tape.emit("attention", args)
    if room:
        shape = (room, heads, value_size + 2)  # memory that all layers share, and that is taken when it is written
        partials = tape.constant(("partial attention", shape), lambda: aligned(shape, torch.float32))
        args.partials = partials.data_ptr()
        tape.emit("attention_merge", args)
    return o, lse


def _pages(kv: tuple[Paged, Paged] | None) -> tuple[Tensor, Tensor]:
    """The pages of keys and of values."""
    if kv is None:
        raise NotRecordable("attention without a cache")
    keys, values = kv
    if not (isinstance(keys, PageRef) and isinstance(values, PageRef)):
        raise NotRecordable(f"attention over a {type(keys).__name__}")
    pages = keys.pages, values.pages
    if pages[0].dtype != pages[1].dtype or pages[0].dtype not in (torch.bfloat16, torch.float32):
        raise NotRecordable(f"attention over pages of {pages[0].dtype} and {pages[1].dtype}")
    assert pages[0].shape[1] == PAGE_SIZE and pages[0].movedim(1, -1).is_contiguous(), "keys lie lane by lane"
    assert pages[1].is_contiguous(), "values lie token by token"
    return pages
