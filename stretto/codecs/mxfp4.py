"""MXFP4: blocks of 32 E2M1 numbers and a power of two, x = 2^(e - 127) v. Format: GGUF (ggml block_mxfp4), with the
elements and scales of OCP Microscaling 1.0.

    byte 0 e (E8M0)    1-16 v: low halves are values 0-15, high halves 16-31
    v: a sign and 0 1/2 1 3/2 2 3 4 6; minus zero decodes to zero

Encoding is the recipe of that standard: e = floor(log2 max|x|) - 2 + 127, at least 0, then the nearest v, at most 6,
and of two equally near the smaller. `gguf` 0.19.0 writes the same bytes but for two cases: it takes the logarithm in
fp32, which rounds some numbers just below a power of two up to it, and its e of a block below 2^-125 wraps around to
255 or less. The standard calls e = 255 NaN; ggml decodes it as 2^128 and so does this, but no file is loaded that
holds one.
"""

from itertools import pairwise

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks, join_nibbles, nibbles
from stretto.core.card import Can, Card
from stretto.core.codec import Stored
from stretto.core.errors import UserError

_DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_BETWEEN = tuple((low + high) / 2 for low, high in pairwise(_DOUBLED))


class MXFP4(BlockCodec):
    """17 bytes for 32 values."""

    name, block, block_bytes = "mxfp4", 32, 17
    floats = (torch.float8_e8m0fnu, 0, 1)
    gguf_type, gguf_file_type = 39, 38

    def unpack(self, blocks: Tensor) -> Tensor:
        values = torch.tensor([*_DOUBLED, *(0.0 - v for v in _DOUBLED)], device=blocks.device)
        codes = nibbles(blocks[:, 1:]).int()
        return values.index_select(0, codes.flatten()).view(codes.shape).mul_(_half_scales(blocks[:, :1]))

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width], width a multiple of 32. UserError for values that are not finite."""
        return encode_blocks(self, x, _pack)


def _half_scales(e: Tensor) -> Tensor:
    """uint8 [N, 1] -> fp32 [N, 1]: 2^(e - 128), the factors of doubled values. Two are subnormal."""
    e = e.int()
    return torch.where(e < 2, (e + 1) << 21, (e - 1) << 23).view(torch.float32)


def _pack(x: Tensor) -> Tensor:
    amax = x.abs().amax(dim=1, keepdim=True)
    if not bool(torch.isfinite(amax).all()):
        raise UserError(
            "values that are not finite cannot be stored as mxfp4",
            why="the values of a block share a scale",
            try_="bf16 or f32 for this tensor",
        )
    log2 = torch.frexp(amax).exponent - 1  # of fractions in [1/2, 1)
    e = torch.where(amax > 0, (log2 - 2 + 127).clamp(min=0), 0).to(torch.uint8)
    sizes = torch.bucketize(x.abs() / _half_scales(e), torch.tensor(_BETWEEN, device=x.device)).to(torch.uint8)
    signs = ((x < 0) & (sizes > 0)).to(torch.uint8) << 3
    return torch.cat([e, join_nibbles(sizes | signs)], dim=1)


CARD = Card(
    name="mxfp4",
    make=MXFP4,
    idea="32 four-bit floats share a power of two",
    paper="GGUF",
    can=Can.ENCODE | Can.NATIVE,
    cost="4.25 bits a value",
)
