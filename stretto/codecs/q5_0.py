"""Q5_0: blocks of 32 five-bit codes and one scale, x = d (q - 16). Format: GGUF (ggml block_q5_0). Read only.

bytes 0-1 d (fp16)    2-5 fifth bits, bit j of value j    6-21 four low bits, ordered as in Q4_0
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, fifth_bits, nibbles
from stretto.core.card import Can, Card


class Q5_0(BlockCodec):
    """22 bytes for 32 values."""

    name, block, block_bytes = "q5_0", 32, 22
    floats = (torch.float16, 0, 2)
    gguf_type, gguf_file_type = 6, 8

    def unpack(self, blocks: Tensor) -> Tensor:
        q = nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])
        return q.float().sub_(16).mul_(self.scales(blocks))


CARD = Card(
    name="q5_0",
    make=Q5_0,
    idea="32 five-bit codes share a scale",
    paper="GGUF",
    can=Can.NATIVE,
    cost="5.5 bits a value",
)
