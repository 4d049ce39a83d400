"""What all block formats share: walking over blocks in bounded memory, half-precision scales, nibbles.

A codec file gives `unpack` (bytes of blocks -> fp32 values) and `floats` (where the numbers lie that must be finite);
the ones that can write pass their `pack` to `encode_blocks` or `encode_rows`. Letters: N blocks, R rows.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stretto.core.codec import Codec, Stored
from stretto.core.errors import ModelFileError, UserError

STEP = 1 << 20  # values handled at a time: 4 MB of fp32
_EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float8_e8m0fnu: 0xFF}
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by size in bytes


class BlockCodec(Codec):
    """A codec whose rows are sequences of blocks: `block` values in `block_bytes` bytes, behind a head or none.

    floats: the stored floating-point numbers, as their type and the bytes [first, last) that hold them: of the head of
    a row where there is one, else of a block.
    """

    floats: ClassVar[tuple[torch.dtype, int, int]]

    @abstractmethod
    def unpack(self, blocks: Tensor) -> Tensor:
        """uint8 [N, block_bytes] -> fp32 [N, block], the format's own order of operations."""

    def with_head(self, values: Tensor, heads: Tensor) -> Tensor:
        """fp32 [R, n] of `unpack`, some columns of R rows, and uint8 [R, head_bytes] -> the values."""
        return values

    def scales(self, holders: Tensor) -> Tensor:
        """uint8 [N, bytes] of blocks, or of heads -> fp32 [N, n]: the stored floating-point numbers."""
        dtype, first, last = self.floats
        # The copy also aligns what a file may hold at an odd address.
        return holders[:, first:last].clone(memory_format=torch.contiguous_format).view(dtype).float()

    def first_not_finite(self, holders: Tensor) -> int | None:
        """Of uint8 [N, bytes] of blocks, or of heads, on the CPU: the first that holds NaN or infinity. Looks at
        exponents, where they lie: a load reads every block of a model here."""
        dtype, first, last = self.floats
        bits = holders.numpy()[:, first:last].view(_WORDS[dtype.itemsize])
        bad = bits & _EXPONENTS[dtype] == _EXPONENTS[dtype]
        return int(bad.any(axis=1).argmax()) if bad.any() else None

    def decode(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """Values [*shape] in `dtype`. Beside the result, only a few times 4 MB are held at any moment."""
        values = torch.empty(stored.shape, dtype=dtype, device=stored.data.device)
        if values.numel():
            flat = values.view(-1)
            for cut in _walk(self, stored):
                part = self.unpack(cut.blocks)
                part = self.with_head(part.view(len(cut.heads), -1), cut.heads).view(-1)
                flat[cut.first * self.block : cut.first * self.block + part.numel()] = part
        return values

    def encode(self, x: Tensor) -> Stored:
        """Refused: a codec that can write overrides this."""
        raise UserError(f"{self.name} can be read, not written", try_="q8_0, q4_1, q4_0, bf16, f16 or f32")


def encode_blocks(codec: Codec, x: Tensor, pack: Callable[[Tensor], Tensor]) -> Stored:
    """Store `x` [..., width] of any float dtype with `pack`: fp32 [N, block] -> uint8 [N, block_bytes].

    Raises UserError if a row is no multiple of the block, or if `pack` refuses a value.
    """

    def rows(part: Tensor) -> Tensor:
        parts = part.reshape(-1, codec.block).split(STEP // codec.block)  # more than one only for very long rows
        return torch.cat([pack(blocks) for blocks in parts]).view(len(part), -1)

    return encode_rows(codec, x, rows)


def encode_rows(codec: Codec, x: Tensor, pack: Callable[[Tensor], Tensor]) -> Stored:
    """As `encode_blocks`, with a `pack` of whole rows: fp32 [R, width] -> uint8 [R, row bytes]."""
    assert x.is_floating_point(), f"{codec.name} stores floating-point numbers, not {x.dtype}"
    shape = tuple(x.shape)
    width = shape[-1] if shape else 1
    if width % codec.block:
        raise UserError(
            f"a row of {width} values cannot be stored as {codec.name}",
            why=f"rows are cut into blocks of {codec.block} that share a scale",
            try_="bf16, f16 or f32 for this tensor",
        )
    data = torch.empty((*shape[:-1], codec.row_bytes(width)), dtype=torch.uint8, device=x.device)
    if data.numel():
        out = data.view(-1, data.shape[-1])
        rows = x.detach().reshape(len(out), width)
        step = max(1, STEP // max(1, width))
        for first in range(0, len(rows), step):
            out[first : first + step] = pack(rows[first : first + step].to(torch.float32))
    return Stored(codec, shape, data)


def check_finite(stored: Stored, name: str, where: str) -> None:
    """Refuse NaN and infinity among the stored scales (or values, in the plain formats): ModelFileError naming the
    tensor `name` of the file `where` and the first bad row. A NaN scale would silently poison every answer."""
    codec = stored.codec
    assert isinstance(codec, BlockCodec), f"{codec.name} has no scales to check"
    per_row = max(1, stored.shape[-1] // codec.block) if stored.shape else 1
    for cut in _walk(codec, stored):
        bad = codec.first_not_finite(cut.heads if codec.head_bytes else cut.blocks)
        if bad is not None:
            row = cut.first // per_row + bad if codec.head_bytes else (cut.first + bad) // per_row
            raise ModelFileError(
                f"{where}: tensor {name!r} has a scale or value that is not finite, in row {row}",
                why="NaN or infinity in a weight spreads to every output",
                try_="download or convert the file again",
            )


def nibbles(qs: Tensor) -> Tensor:
    """uint8 [..., n] -> uint8 [..., 2n]: all low halves, then all high halves."""
    return torch.cat([qs & 15, qs >> 4], dim=-1)


def join_nibbles(codes: Tensor) -> Tensor:
    """The inverse of `nibbles`: codes 0..15, uint8 [N, 2n] -> [N, n]."""
    low, high = codes.chunk(2, dim=-1)
    return low | (high << 4)


def fifth_bits(qh: Tensor) -> Tensor:
    """uint8 [N, 4] -> uint8 [N, 32]: bit j of the little-endian word, moved to value 16."""
    shifts = torch.arange(8, dtype=torch.uint8, device=qh.device)
    return (((qh[:, :, None] >> shifts) & 1) << 4).flatten(1)


def six_bit_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K, uint8 [N, 12] -> scales and minima of the 8 sub-blocks, fp32 [N, 8] each."""
    low, mid, high = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = torch.cat([low & 63, (high & 15) | ((low >> 6) << 4)], dim=1)
    minima = torch.cat([mid & 63, (high >> 4) | ((mid >> 6) << 4)], dim=1)
    return scales.float(), minima.float()


def inverse(d: Tensor) -> Tensor:
    """1/d, and 0 where that is no finite number (d is zero, or so small that it is stored as zero)."""
    inv = torch.ones_like(d) / d
    return torch.where(torch.isfinite(inv), inv, torch.zeros_like(d))


def half_bytes(d: Tensor, name: str) -> Tensor:
    """fp32 [N, 1] as the 2 bytes of fp16, uint8 [N, 2]. UserError if a number is not finite there."""
    half = d.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise UserError(
            f"values that are not finite, or too large, cannot be stored as {name}",
            why="the numbers of a block share a 16-bit float scale, at most 65504",
            try_="bf16 or f32 for this tensor",
        )
    return half.view(torch.uint8)


class _Cut(NamedTuple):
    """Some blocks of a tensor: all of R rows, or some of one row."""

    first: int  # number of the first one
    heads: Tensor  # uint8 [R, head_bytes]
    blocks: Tensor  # uint8 [N, block_bytes]


def _walk(codec: Codec, stored: Stored) -> Iterator[_Cut]:
    """The whole tensor, about `STEP` values at a time."""
    data = stored.data
    width = stored.shape[-1] if stored.shape else 1
    row_bytes = codec.row_bytes(width)
    expected = (*stored.shape[:-1], row_bytes)
    assert width % codec.block == 0 and data.shape == expected, f"{codec.name}: {tuple(data.shape)}, not {expected}"
    if 0 in stored.shape:
        return
    # Contiguous blocks, with no heads between them, are one long row.
    rows = data.view(1, -1) if codec.head_bytes == 0 and data.is_contiguous() else data.reshape(-1, row_bytes)
    heads, codes = rows[:, : codec.head_bytes], rows[:, codec.head_bytes :]
    per_row, most = codes.shape[1] // codec.block_bytes, STEP // codec.block
    step = max(1, most // per_row)
    for row in range(0, len(rows), step):
        for first in range(0, per_row, most):  # more than one turn only for very long rows
            cut = codes[row : row + step, first * codec.block_bytes : (first + most) * codec.block_bytes]
            yield _Cut(row * per_row + first, heads[row : row + step], cut.reshape(-1, codec.block_bytes))
