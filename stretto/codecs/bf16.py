"""BF16: the upper half of an fp32 number, little endian."""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks
from stretto.core.card import Can, Card
from stretto.core.codec import Stored
from stretto.core.page_format import PageFormat, Plain


class BF16(BlockCodec):
    """2 bytes a value, rounded to nearest even; NaN stays NaN (quiet, sign and upper payload kept)."""

    name, block, block_bytes = "bf16", 1, 2
    floats = (torch.bfloat16, 0, 2)
    gguf_type, gguf_file_type = 30, 32

    def unpack(self, blocks: Tensor) -> Tensor:
        return self.scales(blocks)

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width] as bf16."""
        return encode_blocks(self, x, _pack)

    def pages(self) -> PageFormat:
        return Plain(torch.bfloat16)


def _pack(part: Tensor) -> Tensor:
    # In integers: torch's own cast gives NaN different bits in vector and tail elements.
    bits = part.contiguous().view(torch.int32)
    even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return torch.where(part.isnan(), quiet, even).to(torch.int16).view(torch.uint8)


CARD = Card(
    name="bf16",
    make=BF16,
    idea="the upper half of single precision",
    paper="bfloat16",
    can=Can.ENCODE | Can.EXACT_REENCODE | Can.NATIVE | Can.KV,
    cost="16 bits a value",
)
