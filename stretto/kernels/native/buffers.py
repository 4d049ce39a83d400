"""Memory for the rows of a step: buffers whose number of rows is known when a step runs.

A buffer has room for the largest step. It belongs to whoever holds its tensor or a view of it; after that, the next
buffer of the same size takes its memory. So a model of thirty layers needs the buffers of one.
"""

import ctypes
import mmap
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stretto.kernels.native.guard import NotRecordable

ALIGN = 64
LANES = 16  # fp32 numbers of a vector
ALL_ROWS, OUT_ROWS = "all_rows", "out_rows"
"""Leading dimensions that are known when a step runs: rows of activations, and rows that the head needs."""


@dataclass(slots=True)
class _Buffer:
    rows: str
    memory: mmap.mmap
    derived: dict[Hashable, Tensor] = field(default_factory=dict)


class Buffers:
    """The buffers of one list of operations, which run in the order in which they asked for theirs.

    max_rows: room for rows of activations; max_out: for rows that the head needs. Both are rounded up to whole blocks
    of the fixed-point form, which holds eight rows. The memory lives as long as this object, whoever holds it.
    """

    def __init__(self, max_rows: int, max_out: int) -> None:
        self.capacity = {ALL_ROWS: -(-max_rows // 8) * 8, OUT_ROWS: -(-max_out // 8) * 8}
        self.memory: list[mmap.mmap] = []
        self._buffers: dict[int, _Buffer] = {}  # by the start of their memory
        self._free: dict[int, list[mmap.mmap]] = {}  # by size

    def empty(self, rows: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[capacity of `rows`, *shape], aligned to cache lines."""
        whole = (self.capacity[rows], *shape)
        count = int(torch.Size(whole).numel())
        size = -(-count * dtype.itemsize // ALIGN) * ALIGN
        free = self._free.setdefault(size, [])
        if free:
            memory = free.pop()
        else:
            memory = _map(size)
            self.memory.append(memory)
        lease = (ctypes.c_char * size).from_buffer(memory)  # lives as long as the tensor and its views
        start = ctypes.addressof(lease)
        weakref.finalize(lease, self._release, start, size, memory)
        self._buffers[start] = _Buffer(rows, memory)
        return torch.frombuffer(lease, dtype=dtype, count=count).view(whole)

    def holds(self, x: Tensor) -> bool:
        """Whether `x` is a buffer, or a view of one."""
        return x.untyped_storage().data_ptr() in self._buffers

    def kind(self, x: Tensor) -> str:
        """Which rows `x` holds: `ALL_ROWS` or `OUT_ROWS`."""
        return self._buffer(x).rows

    def derived(self, x: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A buffer computed from `x`, made once while `x` lives: buffers are written once."""
        known = self._buffer(x).derived
        if key not in known:
            known[key] = make()
        return known[key]

    def borrowed(self, x: Tensor) -> Tensor:
        """`x` without its claim to the memory: whoever reads it later knows that it is his turn."""
        memory = self._buffer(x).memory
        whole = torch.frombuffer(memory, dtype=x.dtype, count=len(memory) // x.itemsize)
        return whole.as_strided(x.shape, x.stride(), x.storage_offset())

    def _buffer(self, x: Tensor) -> _Buffer:
        buffer = self._buffers.get(x.untyped_storage().data_ptr())
        if buffer is None:
            raise NotRecordable("computes with what are no rows of the step")
        return buffer

    def _release(self, start: int, size: int, memory: mmap.mmap) -> None:
        del self._buffers[start]
        self._free[size].append(memory)


def aligned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for `shape` that starts at a page; it is taken when it is first written, and reads as zeros until then."""
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    return torch.frombuffer(_map(max(size, 1)), dtype=dtype, count=size // dtype.itemsize).view(tuple(shape))


def padded(rows: Tensor) -> Tensor:
    """[R, C rounded up to vectors] fp32: a copy of the parameters [R, C], zeros beyond."""
    copy = aligned((len(rows), -(-rows.shape[1] // LANES) * LANES), torch.float32)
    if not rows.is_meta:  # a pass that is only recorded to see whether it can be has no numbers
        copy[:, : rows.shape[1]] = rows
    return copy


def _map(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
