"""Int8: signed bytes, and one scale for all of a row, x = s q. Format: `int-quantized` with the strategy `channel`, as
compressed-tensors defines it, its two tensors put together row by row.

    bytes 0-3 s (fp32)    then q: a signed byte for every value of the row

Encoding is symmetric and searches nothing: s = amax / 127, q = round(x / s), halves to even, with the s that is stored;
a row of zeros has s = 0. Files may hold any s and all of -128..127.

As a format of keys and values, the row is one head of one token, and the scales are an array of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_rows
from stretto.core.card import Can, Card, Exactness
from stretto.core.codec import Stored
from stretto.core.errors import UserError
from stretto.core.page_format import PageFormat


class Int8(BlockCodec):
    """A byte a value and 4 bytes a row, of any width."""

    name, block, block_bytes, head_bytes = "int8", 1, 1, 4
    floats = (torch.float32, 0, 4)

    def unpack(self, blocks: Tensor) -> Tensor:
        return blocks.view(torch.int8).float()

    def with_head(self, values: Tensor, heads: Tensor) -> Tensor:
        return values.mul_(self.scales(heads))

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width]; a tensor of one dimension is one row. UserError for values that are not finite."""
        return encode_rows(self, x, _pack)

    def pages(self) -> PageFormat:
        return Int8Pages()

    def join(self, codes: Tensor, scales: Tensor) -> Stored:
        """Codes int8 [*leading, width] and a scale for every row, of any float dtype that fp32 holds, as one tensor."""
        heads = scales.float().reshape(*codes.shape[:-1], 1)
        data = torch.cat([heads.view(torch.uint8), codes.view(torch.uint8)], dim=-1)
        return Stored(self, tuple(codes.shape), data)


@dataclass(frozen=True, slots=True)
class Int8Pages(PageFormat):
    """One scale per token and head. A head with a number that is not finite has a scale that is not, and is NaN."""

    name: str = "int8"
    dtype: torch.dtype = torch.int8
    sides: int = 1

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        x = rows.float()
        scale, q = _quantized(x, x.abs().amax(dim=-1, keepdim=True))
        return torch.where(scale.isfinite(), q, torch.zeros_like(q)).to(torch.int8), scale.squeeze(-1)

    def decode(self, payload: Tensor, *sides: Tensor) -> Tensor:
        return payload.float() * sides[0].unsqueeze(-1)


def split(stored: Stored) -> tuple[Tensor, Tensor]:
    """The inverse of `Int8.join`: codes int8 [*leading, width] and scales fp32 [*leading, 1]."""
    heads, codes = stored.data.split([Int8.head_bytes, stored.shape[-1]], dim=-1)
    scales = heads.clone(memory_format=torch.contiguous_format).view(torch.float32)
    return codes.contiguous().view(torch.int8), scales


def _pack(x: Tensor) -> Tensor:
    amax = x.abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    if not bool(torch.isfinite(amax).all()):
        raise UserError(
            "values that are not finite cannot be stored as int8",
            why="the values of a row share a scale",
            try_="bf16 or f32 for this tensor",
        )
    scale, q = _quantized(x, amax)
    return torch.cat([scale.view(torch.uint8), q.to(torch.int8).view(torch.uint8)], dim=1)


def _quantized(x: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
    """(scales, codes as fp32) of values that share the scale of their largest magnitude."""
    scale = amax / 127
    return scale, torch.where(scale > 0, x / scale, torch.zeros_like(x)).round_().clamp_(-127, 127)


CARD = Card(
    name="int8",
    make=Int8,
    idea="signed bytes, and one scale for all of a row",
    paper="compressed-tensors",
    can=Can.ENCODE | Can.NATIVE | Can.KV,
    cost="8 bits a value + 4 bytes a row",
    exactness=Exactness.APPROXIMATE,  # as keys and values: a model file in int8 is what it is
)
