"""Products with weights in the file's own integers (linear.cpp), recorded on the tape.

A `NativeWeight` is a matrix repacked into tiles; quantized codecs keep their integers and scales, plain ones their
bits. Its segments may have different codecs: each run of rows of one codec is an operation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.core.codec import Codec, Stored
from stretto.kernels.native.buffers import ALL_ROWS, aligned
from stretto.kernels.native.guard import require
from stretto.kernels.native.library import Fields, Team
from stretto.kernels.native.tape import Tape, current, why_not_here
from stretto.kernels.native.tiles import TILE, StoredRows, TileSpec, tile_bytes, write_tiles

__all__ = [
    "TILE", "NativeWeight", "Tiles", "fixed_point", "fixed_point_rows", "linear", "lookup", "product", "read_bytes",
    "storage", "tile", "why_not",
]  # fmt: skip
_GROUP, _BLOCK = 32, 640  # inputs of a group, bytes of eight rows and one group
_READ_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows of a weight that share a codec: `data` uint8, tiles of 32 rows. spec: how a later process makes them from
    files, None where the rows are not those of a file."""

    codec: Codec
    num_rows: int
    data: Tensor
    spec: TileSpec | None = None


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A matrix [O, D] as tiles, one entry per run of rows of one codec. team: who multiplies it outside a tape."""

    parts: tuple[Tiles, ...]
    shape: tuple[int, int]
    team: Team

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the matrix streams."""
        return sum(part.data.nbytes for part in self.parts)


def read_bytes(buffer: Tensor, team: Team) -> None:
    """Read `buffer` [n] uint8 once and do nothing with it: the probe of every stated bound."""
    sums = torch.zeros(buffer.nbytes // _READ_CHUNK + 1, dtype=torch.int32)
    team.run_once("read_bytes", [{"data": buffer, "size": buffer.nbytes, "sums": sums}])


def storage(codec: Codec, d_in: int) -> str:
    """How a matrix of this codec and width is stored: a name of the library's `Format`, or in words what is none."""
    return codec.name if codec.is_plain or d_in % _GROUP == 0 else f"{codec.name} in rows of {d_in} values"


def tile(segments: Sequence[Stored], team: Team) -> NativeWeight:
    """The rows of all segments, repacked from their bytes (mapped files are read once)."""
    runs: list[list[Stored]] = []
    for segment in segments:
        if runs and runs[-1][-1].codec.name == segment.codec.name:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    parts = tuple(_tiles(run, team) for run in runs)
    return NativeWeight(parts, (sum(s.shape[0] for s in segments), segments[0].shape[1]), team)


def _tiles(run: Sequence[Stored], team: Team) -> Tiles:
    codec, d_in = run[0].codec, run[0].shape[1]
    d_out, format = sum(stored.shape[0] for stored in run), storage(codec, d_in)
    data = aligned((tile_bytes(team.library, format, d_in, d_out),), torch.uint8)
    held = [stored.data.contiguous() for stored in run]
    pieces = [StoredRows(rows.data_ptr(), len(rows), rows.shape[-1]) for rows in held]
    write_tiles(team, format, d_in, pieces, data.data_ptr())
    places = [stored.place for stored in run if stored.place is not None]
    spec = TileSpec(format, d_in, d_out, tuple(places)) if len(places) == len(run) else None
    return Tiles(codec, d_out, data, spec)


def why_not(x: Tensor, weight: object) -> str | None:
    """The weight must be in tiles."""
    return None if isinstance(weight, NativeWeight) else "the weight is not in tiles"


def linear(x_TD: Tensor, weight: NativeWeight, bias: Tensor | None, *, num_step_rows: int) -> Tensor:
    """y = x W^T + bias: x [T, D] fp32 (rows contiguous) -> y [T, O] fp32, recorded, or computed at once where no tape
    is recorded (in a host operation). Every row is reproducible, and the same either way."""
    if why_not_here() is not None:
        return _at_once(x_TD, weight, bias)
    d_in = weight.shape[1]
    require(x_TD.dtype == torch.float32 and x_TD.stride(1) == 1, "multiplies what are no fp32 rows")
    assert x_TD.shape[1] == d_in
    fixed = None
    if not all(part.codec.is_plain for part in weight.parts):
        fixed = fixed_point(x_TD)
    return product(x_TD, fixed, weight, bias)


def _at_once(x_TD: Tensor, weight: NativeWeight, bias: Tensor | None) -> Tensor:
    """A tape of one product, for as many rows as there are."""
    n = len(x_TD)
    tape = Tape(weight.team, max_rows=max(1, n), max_out=1, context=1)
    x = tape.empty(ALL_ROWS, x_TD.shape[1])
    x[:n] = x_TD
    with tape.recording():
        y = linear(x, weight, bias, num_step_rows=0)
    tape.step.num_rows = n
    tape.run()
    return y[:n].clone()


def fixed_point(x_TD: Tensor) -> Tensor:
    """Record the fixed-point form of x [T, D] fp32, once: [T, bytes] uint8, in blocks of eight rows and 32 inputs."""
    tape, d_in = current(), x_TD.shape[1]

    def quantize() -> Tensor:
        blocks = fixed_point_rows(x_TD, d_in)
        shape: Fields = {"rows": tape.rows(x_TD), "d_in": d_in, "coarse_prompts": tape.coarse_prompts}
        tape.emit("quantize", **shape, x=x_TD, out=blocks)
        return blocks

    return tape.derived(x_TD, ("fixed point", x_TD.storage_offset(), d_in, x_TD.stride(0)), quantize)


def fixed_point_rows(x: Tensor, d_in: int) -> Tensor:
    """A buffer for the fixed-point form of `d_in` values of every row that `x` holds."""
    assert d_in % _GROUP == 0, "rows of quantized weights are whole groups"
    return current().like(x, d_in // _GROUP * _BLOCK // 8, dtype=torch.uint8)


def product(x: Tensor, fixed: Tensor | None, weight: NativeWeight, bias: Tensor | None) -> Tensor:
    """Record y = x W^T + bias, [T, O] fp32.

    Quantized parts read `fixed`, the fixed-point form of x; plain parts read x. Where there are none, x may be any
    buffer for the same rows.
    """
    tape, (d_out, d_in) = current(), weight.shape
    assert bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())
    y = tape.like(x, d_out)
    first = 0
    for part in weight.parts:
        rows = slice(first, first + part.num_rows)
        tape.emit(
            "matmul",
            rows=tape.rows(x),
            d_in=d_in,
            d_out=part.num_rows,
            format=tape.library.code("Format", part.codec.name),
            coarse_prompts=tape.coarse_prompts,
            tiles=part.data,
            bias=None if bias is None else bias[rows],
            fixed=fixed,
            x=x,
            y=y[:, rows],
        )
        first += part.num_rows
    return y


def lookup(tokens_T: Tensor, weight: NativeWeight, *, scale: float) -> Tensor:
    """Record the rows of `weight` that the step's tokens name, times `scale`: [T, D] fp32."""
    tape, (part,) = current(), weight.parts
    y = tape.empty(ALL_ROWS, weight.shape[1])
    code = tape.library.code("Format", part.codec.name)
    tape.emit("embed", d_in=weight.shape[1], format=code, tiles=part.data, multiplier=scale, y=y)
    return y
