"""`Stored`: one stored tensor, in the bytes of its codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from stretto.core.codec import Codec


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of logical shape `shape` as its codec stores it.

    data: the canonical payload, `uint8 [*shape[:-1], bytes per row]`: rows (the last dimension) are encoded
    independently, so slicing, permuting and concatenating leading dimensions acts on raw bytes. Often a read-only
    view of a memory-mapped file. Device-specific layouts are derived from it by kernels and never saved.
    """

    codec: Codec
    shape: tuple[int, ...]
    data: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return self.data.numel()

    def rows(self, first: int, last: int) -> Stored:
        """Rows [first, last) of the leading dimension: a view."""
        part = self.data[first:last]
        return Stored(self.codec, (part.shape[0], *self.shape[1:]), part)

    def permute_rows(self, index: torch.Tensor) -> Stored:
        """The leading dimension reordered by `index` [rows] (a copy of the bytes, exact for every codec)."""
        return Stored(
            self.codec, self.shape, self.data.index_select(0, index)
        )  # row by row: indexing goes byte by byte

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """The values, `[*shape]` in `dtype`; computed in fp32 and rounded once."""
        return self.codec.decode(self, dtype)
