"""The `Codec` socket: how numbers are stored; and `Stored`, one tensor in the bytes of its codec."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.core.errors import UserError
from stretto.core.file_rows import FileRows
from stretto.core.page_format import PageFormat


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of logical shape `shape` as its codec stores it.

    data: the canonical payload, `uint8 [*shape[:-1], bytes per row]`: rows (the last dimension) are encoded
    independently, so slicing, permuting and concatenating leading dimensions acts on raw bytes. Often a read-only
    view of a memory-mapped file. Device-specific layouts are derived from it by kernels and never saved.
    place: of a matrix whose bytes are rows of a file, where they are.
    """

    codec: "Codec"
    shape: tuple[int, ...]
    data: torch.Tensor
    place: FileRows | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return self.data.numel()

    def rows(self, first: int, last: int) -> "Stored":
        """Rows [first, last) of the leading dimension: a view."""
        part = self.data[first:last]
        place = None if self.place is None else self.place.rows(first, last)
        return Stored(self.codec, (part.shape[0], *self.shape[1:]), part, place)

    def permute_rows(self, index: torch.Tensor) -> "Stored":
        """The leading dimension reordered by `index` [rows] (a copy of the bytes, exact for every codec)."""
        place = None if self.place is None else self.place.permuted(index.tolist())
        # row by row: indexing goes byte by byte
        return Stored(self.codec, self.shape, self.data.index_select(0, index), place)

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """The values, `[*shape]` in `dtype`; computed in fp32 and rounded once."""
        return self.codec.decode(self, dtype)


class Codec(ABC):
    """A way to store numbers as bytes, row by row.

    Laws (tests/contracts/test_codec.py):
    - `decode` equals the format's reference bit for bit in fp32; other dtypes are that value rounded once;
    - `nbytes(shape)` equals the bytes of `encode(x)` and of every stored tensor of that shape;
    - rows are independent: encoding or decoding a slice of rows equals slicing the whole;
    - empty, odd-sized and non-contiguous inputs work, or are refused by name (a row that is no multiple of `block`);
    - without Can.ENCODE, `encode` raises UserError; without Can.KV, `pages` does.
    """

    name: str
    block: int  # values that share a scale: rows must be a multiple of it
    block_bytes: int  # bytes that a block takes
    head_bytes: int = 0  # bytes in front of the blocks of a row: what all of them share
    gguf_type: int | None = None  # the ggml type of a tensor in a GGUF file, where there is one
    gguf_file_type: int | None = None  # `general.file_type` of a file that holds mostly this, where one is defined

    @property
    def is_plain(self) -> bool:
        """Whether every value is stored by itself, with nothing that it shares with others."""
        return self.block == 1 and self.head_bytes == 0

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape."""
        rows = 1
        for n in shape[:-1]:
            rows *= n
        return rows * self.row_bytes(shape[-1] if shape else 1)

    def row_bytes(self, width: int) -> int:
        """Bytes of one row of `width` values; `width` must be a multiple of `block`."""
        return self.head_bytes + width // self.block * self.block_bytes

    @abstractmethod
    def decode(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """Values `[*stored.shape]`, computed in fp32, rounded once to `dtype`."""

    @abstractmethod
    def encode(self, x: Tensor) -> Stored:
        """Store `x` [..., width] (any float dtype; the arithmetic is fp32). Raises UserError without Can.ENCODE."""

    def pages(self) -> PageFormat:
        """How pages of keys and values store numbers. Raises UserError without Can.KV."""
        raise UserError(f"{self.name} cannot store keys and values", why="it stores weights only")
