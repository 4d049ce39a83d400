"""Q5_K: 256 values in 8 sub-blocks of 32, x = (d s_i) q - (dmin m_i). Format: GGUF (ggml block_q5_K). Read only.

bytes 0-1 d, 2-3 dmin (fp16)    4-15 s_i and m_i, six bits each
16-47 fifth bits: bit i of byte l belongs to value l of sub-block i    48-175 four low bits as in Q4_K
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, nibbles, six_bit_scales
from stretto.core.card import Can, Card


class Q5_K(BlockCodec):
    """176 bytes for 256 values."""

    name, block, block_bytes = "q5_k", 256, 176
    floats = (torch.float16, 0, 4)
    gguf_type = 13

    def unpack(self, blocks: Tensor) -> Tensor:
        d, dmin = self.scales(blocks).chunk(2, dim=1)
        s, m = six_bit_scales(blocks[:, 4:16])
        low = nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
        shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
        high = (blocks[:, None, 16:48] >> shifts) & 1
        q = (low | (high << 4)).float()
        return q.mul_((d * s)[:, :, None]).sub_((dmin * m)[:, :, None]).flatten(1)


CARD = Card(
    name="q5_k",
    make=Q5_K,
    idea="five-bit codes with six-bit scales and minima per 32 values",
    paper="GGUF",
    can=Can.NATIVE,
    cost="5.5 bits a value",
)
