"""F16: IEEE half precision, little endian. Largest value 65504."""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks, half_bytes
from stretto.core.card import Can, Card
from stretto.core.codec import Stored


class F16(BlockCodec):
    """2 bytes a value, rounded to nearest even."""

    name, block, block_bytes = "f16", 1, 2
    floats = (torch.float16, 0, 2)
    gguf_type, gguf_file_type = 1, 1

    def unpack(self, blocks: Tensor) -> Tensor:
        return self.scales(blocks)

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width] as fp16. UserError if a value is not finite in fp16: it must not turn into infinity."""
        return encode_blocks(self, x, lambda part: half_bytes(part, self.name))


CARD = Card(
    name="f16",
    make=F16,
    idea="plain half precision",
    paper="IEEE 754",
    can=Can.ENCODE | Can.EXACT_REENCODE | Can.NATIVE,
    cost="16 bits a value",
)
