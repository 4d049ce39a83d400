"""F32: IEEE single precision, little endian."""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks
from stretto.core.card import Can, Card
from stretto.core.codec import Stored
from stretto.core.page_format import PageFormat, Plain


class F32(BlockCodec):
    """4 bytes a value; every bit pattern survives."""

    name, block, block_bytes = "f32", 1, 4
    floats = (torch.float32, 0, 4)
    gguf_type, gguf_file_type = 0, 0

    def unpack(self, blocks: Tensor) -> Tensor:
        return self.scales(blocks)

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width] as fp32."""
        return encode_blocks(self, x, lambda part: part.contiguous().view(torch.uint8))

    def pages(self) -> PageFormat:
        return Plain(torch.float32)


CARD = Card(
    name="f32",
    make=F32,
    idea="plain single precision",
    paper="IEEE 754",
    can=Can.ENCODE | Can.EXACT_REENCODE | Can.NATIVE | Can.KV,
    cost="32 bits a value",
)
