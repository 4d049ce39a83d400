"""Q4_K: 256 values in 8 sub-blocks of 32, x = (d s_i) q - (dmin m_i). Format: GGUF (ggml block_q4_K). Read only.

bytes 0-1 d, 2-3 dmin (fp16)    4-15 s_i and m_i, six bits each
16-143 q: each run of 32 bytes holds sub-block 2c in its low and 2c + 1 in its high halves
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, nibbles, six_bit_scales
from stretto.core.card import Can, Card


class Q4_K(BlockCodec):
    """144 bytes for 256 values."""

    name, block, block_bytes = "q4_k", 256, 144
    floats = (torch.float16, 0, 4)
    gguf_type = 12

    def unpack(self, blocks: Tensor) -> Tensor:
        d, dmin = self.scales(blocks).chunk(2, dim=1)
        s, m = six_bit_scales(blocks[:, 4:16])
        q = nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).float()
        return q.mul_((d * s)[:, :, None]).sub_((dmin * m)[:, :, None]).flatten(1)


CARD = Card(
    name="q4_k",
    make=Q4_K,
    idea="nibbles with six-bit scales and minima per 32 values",
    paper="GGUF",
    can=Can.NATIVE,
    cost="4.5 bits a value",
)
