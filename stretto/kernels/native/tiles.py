"""Tiles of a weight, made from its rows wherever they lie: in memory, or in a file that is mapped.

No torch: what an earlier process learned of a model is enough (`TileSpec`).
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stretto.core.file_rows import FileRows
from stretto.kernels.native.library import Fields, Library, Team
from stretto.kernels.native.memory import MappedFile, Memory

TILE = 32  # rows of a tile


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows in memory as their codec stores them, one after the other, `row_bytes` each."""

    address: int
    count: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class TileSpec:
    """Rows of a weight that share a codec, as tiles. format: its name in the library; d_in, d_out: the matrix; pieces:
    where its rows lie, in order."""

    format: str
    d_in: int
    d_out: int
    pieces: tuple[FileRows, ...]


def tile_bytes(library: Library, format: str, d_in: int, d_out: int) -> int:
    """Bytes of the tiles of a matrix."""
    return -(-d_out // TILE) * library.tile_bytes(library.code("Format", format), d_in)


def write_tiles(team: Team, format: str, d_in: int, pieces: Sequence[StoredRows], target: int) -> None:
    """Repack the rows of all pieces, in order, into tiles at the address `target`."""
    if any(piece.count % TILE for piece in pieces[:-1]):  # a tile spans two pieces: join their bytes first
        joined = Memory(sum(piece.count * piece.row_bytes for piece in pieces))
        written = 0
        for piece in pieces:
            ctypes.memmove(joined.address + written, piece.address, piece.count * piece.row_bytes)
            written += piece.count * piece.row_bytes
        whole = StoredRows(joined.address, sum(piece.count for piece in pieces), pieces[0].row_bytes)
        write_tiles(team, format, d_in, [whole], target)
        return
    layout = team.library.code("Format", format)
    bytes_of_tile, first = team.library.tile_bytes(layout, d_in), 0
    calls: list[Fields] = []
    for piece in pieces:
        call: Fields = {"d_in": d_in, "d_out": piece.count, "format": layout, "source": piece.address}
        calls.append(call | {"row_bytes": piece.row_bytes, "tiles": target + first // TILE * bytes_of_tile})
        first += piece.count
    team.run_once("tile_weight", calls)


def tile_files(spec: TileSpec, files: Mapping[str, MappedFile], team: Team) -> Memory:
    """The tiles of a weight, from its files. Every piece must lie within its file."""
    memory = Memory(tile_bytes(team.library, spec.format, spec.d_in, spec.d_out))
    pieces: list[StoredRows] = []
    held: list[object] = []
    for place in spec.pieces:
        file = files[place.path]
        assert 0 <= place.start <= place.start + place.num_rows * place.row_bytes <= file.nbytes, "rows lie in the file"
        address = file.address + place.start
        if place.order is not None:
            moved = Memory(len(place.order) * place.row_bytes)
            order = array("i", place.order)
            held += [moved, order]
            call: Fields = {"source": address, "row_bytes": place.row_bytes, "num_rows": len(order)}
            team.run_once("gather_rows", [call | {"order": order.buffer_info()[0], "out": moved.address}])
            address = moved.address
        pieces.append(StoredRows(address, place.count, place.row_bytes))
    write_tiles(team, spec.format, spec.d_in, pieces, memory.address)
    for path in {place.path for place in spec.pieces}:
        files[path].forget()
    return memory
