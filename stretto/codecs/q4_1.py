"""Q4_1: blocks of 32 nibbles with a scale and a minimum, x = d q + m. Format: GGUF (ggml block_q4_1).

    bytes 0-1 d (fp16)    2-3 m (fp16)    4-19 q: low halves are values 0-15, high halves 16-31

Encoding follows ggml: m = min, d = (max - min) / 15, q = trunc((x - m) / d + 1/2), from the unrounded d and m.
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks, half_bytes, inverse, join_nibbles, nibbles
from stretto.core.card import Can, Card
from stretto.core.codec import Stored


class Q4_1(BlockCodec):
    """20 bytes for 32 values."""

    name, block, block_bytes = "q4_1", 32, 20
    floats = (torch.float16, 0, 4)
    gguf_type, gguf_file_type = 3, 3

    def unpack(self, blocks: Tensor) -> Tensor:
        d, m = self.scales(blocks).chunk(2, dim=1)
        return nibbles(blocks[:, 4:]).float().mul_(d).add_(m)

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width], width a multiple of 32. UserError for values that are not finite."""
        return encode_blocks(self, x, _pack)


def _pack(x: Tensor) -> Tensor:
    m, top = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    d = (top - m) / torch.full_like(m, 15)
    stored = torch.cat([half_bytes(d, "q4_1"), half_bytes(m, "q4_1")], dim=1)
    q = ((x - m) * inverse(d) + 0.5).to(torch.uint8).clamp_(max=15)
    return torch.cat([stored, join_nibbles(q)], dim=1)


CARD = Card(
    name="q4_1",
    make=Q4_1,
    idea="32 nibbles share a scale and a minimum",
    paper="GGUF",
    can=Can.ENCODE | Can.NATIVE,
    cost="5 bits a value",
)
