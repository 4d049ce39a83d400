"""`LoraTable`: the adapters of an engine, by number and by segment of a matrix."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stretto.kernels.native.buffers import aligned
from stretto.kernels.native.library import Library


@dataclass(frozen=True, slots=True)
class Factors:
    """What an adapter adds to one segment: scale * x a^T b. a: [rank, d_in], b: [rank, d_out], which is B transposed;
    fp32, contiguous."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment lies in its matrix: its first row, how many it has, and their width."""

    first: int
    d_out: int
    d_in: int


class LoraTable:
    """Room for `size` adapters of ranks up to `max_rank`, which are numbered from 1.

    places: of every segment, whose order numbers them. library: kernels that read the table (lora.h); None = torch
    alone does. Written between two steps only.
    """

    def __init__(self, places: Mapping[str, Place], size: int, max_rank: int, library: Library | None = None) -> None:
        self.places, self.size, self.max_rank = dict(places), size, max_rank
        self.numbers = {name: number for number, name in enumerate(places)}
        self._factors: dict[tuple[int, int], Factors] = {}
        self.memory: Tensor | None = None
        if library is not None:
            struct = library.struct("LoraFactors")
            count = size * len(places)
            self.memory = aligned((max(1, count) * ctypes.sizeof(struct),), torch.uint8)
            self._entries: Any = (struct * count).from_address(self.memory.data_ptr())
            self._entry_bytes = ctypes.sizeof(struct)

    @property
    def num_segments(self) -> int:
        return len(self.places)

    def address(self, segment: int) -> int:
        """Of the entry of a segment of the first adapter."""
        assert self.memory is not None
        return self.memory.data_ptr() + segment * self._entry_bytes

    def find(self, number: int, segment: int) -> Factors | None:
        """What adapter `number` adds to a segment, if anything."""
        return self._factors.get((number, segment))

    def write(self, number: int, adapter: Mapping[str, Factors]) -> None:
        """Adapter `number` is from now on what `adapter` says, by the names of segments, and nothing else."""
        assert 1 <= number <= self.size
        self.clear(number)
        for name, factors in adapter.items():
            segment, place = self.numbers[name], self.places[name]
            assert factors.rank <= self.max_rank and factors.a.shape[1] == place.d_in
            assert factors.b.shape == (factors.rank, place.d_out)
            assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (factors.a, factors.b))
            self._factors[number, segment] = factors
            if self.memory is not None:
                entry = self._entries[(number - 1) * self.num_segments + segment]
                entry.a, entry.b = factors.a.data_ptr(), factors.b.data_ptr()
                entry.rank, entry.scale = factors.rank, factors.scale
                entry.first, entry.d_out = place.first, place.d_out

    def clear(self, number: int) -> None:
        """Adapter `number` adds nothing, and its memory is given up."""
        for segment in range(self.num_segments):
            if self._factors.pop((number, segment), None) is not None and self.memory is not None:
                entry = self._entries[(number - 1) * self.num_segments + segment]
                ctypes.memset(ctypes.addressof(entry), 0, self._entry_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all adapters."""
        return sum(factors.nbytes for factors in self._factors.values())
