"""Q4_0: blocks of 32 nibbles and one scale, x = d (q - 8). Format: GGUF (ggml block_q4_0).

    bytes 0-1 d (fp16)    2-17 q: low halves are values 0-15, high halves 16-31

Encoding follows ggml: d = (the first value of largest magnitude) / -8, q = trunc(x / d + 8.5), at most 15, from the
unrounded d. The sum is in question where it falls next to a whole number: ggml rounds product and sum to fp32, or
only the sum where the compiler fuses them. We round both, as ggml without fused operations and `gguf` 0.19.0 do.
Versions of gguf-py that compute it in fp64 (to imitate fusing) give neighbouring codes there: about 1 in a million for
Gaussian fp32 values, 1 in 700 for values that were bf16 before.
"""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, encode_blocks, half_bytes, inverse, join_nibbles, nibbles
from stretto.core.card import Can, Card
from stretto.core.codec import Stored


class Q4_0(BlockCodec):
    """18 bytes for 32 values."""

    name, block, block_bytes = "q4_0", 32, 18
    floats = (torch.float16, 0, 2)
    gguf_type, gguf_file_type = 2, 2

    def unpack(self, blocks: Tensor) -> Tensor:
        return nibbles(blocks[:, 2:]).float().sub_(8).mul_(self.scales(blocks))

    def encode(self, x: Tensor) -> Stored:
        """`x` [..., width], width a multiple of 32. UserError for values that are not finite."""
        return encode_blocks(self, x, _pack)


def _pack(x: Tensor) -> Tensor:
    d = x.gather(1, x.abs().argmax(dim=1, keepdim=True)) / -8  # exact: a power of two
    stored = half_bytes(d, "q4_0")
    q = (x * inverse(d) + 8.5).to(torch.uint8).clamp_(max=15)
    return torch.cat([stored, join_nibbles(q)], dim=1)


CARD = Card(
    name="q4_0",
    make=Q4_0,
    idea="32 nibbles share a scale",
    paper="GGUF",
    can=Can.ENCODE | Can.NATIVE,
    cost="4.5 bits a value",
)
