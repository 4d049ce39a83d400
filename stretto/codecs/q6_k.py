"""Q6_K: 256 values in 16 sub-blocks of 16, x = (d s_i) (q - 32). Format: GGUF (ggml block_q6_K). Read only.

    bytes 0-127 four low bits    128-191 two high bits    192-207 s_i (int8)    208-209 d (fp16)

Each half of 128 values has 64 low and 32 high bytes: run k of 32 values takes low halves of bytes 0-31 and 32-63,
then their high halves, and bits 2k, 2k + 1 of the high bytes.
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, nibbles
from stretto.core.card import Can, Card


class Q6_K(BlockCodec):
    """210 bytes for 256 values."""

    name, block, block_bytes = "q6_k", 256, 210
    floats = (torch.float16, 208, 210)
    gguf_type = 14

    def unpack(self, blocks: Tensor) -> Tensor:
        low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 16, 16)
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
        high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 16, 16)
        s = self.scales(blocks) * blocks[:, 192:208].view(torch.int8).float()
        return (low | (high << 4)).float().sub_(32).mul_(s[:, :, None]).flatten(1)


CARD = Card(
    name="q6_k",
    make=Q6_K,
    idea="six-bit codes with a signed byte scale per 16 values",
    paper="GGUF",
    can=Can.NATIVE,
    cost="6.5625 bits a value",
)
