"""Q5_1: blocks of 32 five-bit codes, a scale and a minimum, x = d q + m. Format: GGUF (ggml block_q5_1). Read only.

bytes 0-1 d (fp16)    2-3 m (fp16)    4-7 fifth bits, bit j of value j    8-23 four low bits, ordered as in Q4_1
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, fifth_bits, nibbles
from stretto.core.card import Can, Card


class Q5_1(BlockCodec):
    """24 bytes for 32 values."""

    name, block, block_bytes = "q5_1", 32, 24
    floats = (torch.float16, 0, 4)
    gguf_type, gguf_file_type = 7, 9

    def unpack(self, blocks: Tensor) -> Tensor:
        d, m = self.scales(blocks).chunk(2, dim=1)
        q = nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])
        return q.float().mul_(d).add_(m)


CARD = Card(
    name="q5_1",
    make=Q5_1,
    idea="32 five-bit codes share a scale and a minimum",
    paper="GGUF",
    can=Can.NATIVE,
    cost="6 bits a value",
)
