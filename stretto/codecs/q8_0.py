"""Q8_0: blocks of 32 signed bytes and one scale, x = d q. Format: GGUF (ggml block_q8_0).

    bytes 0-1 d (fp16)    2-33 q (int8)

Encoding follows ggml: d = max|x| / 127, q = x / d rounded half away from zero, both from the scale *before* it is
rounded to fp16.
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks, half_bytes, inverse
from stretto.core.card import Can, Card
from stretto.core.codec import Stored


class Q8_0(BlockCodec):
    """34 bytes for 32 values."""

    name, block, block_bytes = "q8_0", 32, 34
    floats = (torch.float16, 0, 2)
    gguf_type, gguf_file_type = 8, 7

    def unpack(self, blocks: Tensor) -> Tensor:
        return blocks[:, 2:].view(torch.int8).float().mul_(self.scales(blocks))

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width], width a multiple of 32. UserError for values that are not finite."""
        return encode_blocks(self, x, _pack)


def _pack(x: Tensor) -> Tensor:
    amax = x.abs().amax(dim=1, keepdim=True)
    d = amax / torch.full_like(amax, 127)  # a tensor: a scalar divisor may become a multiplication on some devices
    stored = half_bytes(d, "q8_0")
    scaled = x * inverse(d)
    whole = scaled.abs().floor()
    q = (whole + ((scaled.abs() - whole) * 2).floor()) * scaled.sign()
    return torch.cat([stored, q.to(torch.int8).view(torch.uint8)], dim=1)


CARD = Card(
    name="q8_0",
    make=Q8_0,
    idea="32 signed bytes share a scale",
    paper="GGUF",
    can=Can.ENCODE | Can.NATIVE,
    cost="8.5 bits a value",
)
