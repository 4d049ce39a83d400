"""A program as a file: plain numbers and text, read only if all of it is as it was written.

    "STRETTO1" | sha256 of what follows | u64 length of the JSON | JSON | padding | bytes that the JSON names by place

A file is trusted as far as its folder is private; it is damaged if its checksum, a place or a kind does not fit.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stretto.kernels.native.program import Buffer, Constant, Entry, Given, Place, Program, Scratch

MAGIC = b"STRETTO1"
_HEAD = len(MAGIC) + 32


class Damaged(Exception):
    """Why a file cannot be used."""


class Blob:
    """Bytes that the JSON names by their place."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: "bytes | memoryview") -> list[int]:
        """[first byte, number of bytes]."""
        place = [self._size, len(data)]
        padded = bytes(data) + bytes(-len(data) % 8)
        self._parts.append(padded)
        self._size += len(padded)
        return place

    def join(self) -> bytes:
        return b"".join(self._parts)


def pack(document: Mapping[str, Any], blob: Blob) -> bytes:
    """The bytes of a file."""
    text = json.dumps(document).encode()
    body = len(text).to_bytes(8, "little") + text + bytes(-(8 + len(text)) % 8) + blob.join()
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON and the bytes behind it. Raises Damaged."""
    body = memoryview(data)[_HEAD:]
    if data[: len(MAGIC)] != MAGIC or len(body) < 8:
        raise Damaged("it is no program")
    if hashlib.sha256(body).digest() != data[len(MAGIC) : _HEAD]:
        raise Damaged("its checksum differs")
    length = int.from_bytes(body[:8], "little")
    if length > len(body) - 8:
        raise Damaged("it is cut off")
    document = json.loads(bytes(body[8 : 8 + length]))
    if not isinstance(document, dict):
        raise Damaged("it is no program")
    return document, body[8 + length + -(8 + length) % 8 :]


def part(blob: memoryview, place: list[int]) -> memoryview:
    """The bytes at a place. Raises Damaged for a place beyond them."""
    first, count = place
    if not 0 <= first <= first + count <= len(blob):
        raise Damaged("it names bytes that it does not have")
    return blob[first : first + count]


def program_to_plain(program: Program, blob: Blob) -> dict[str, Any]:
    """A program as JSON; constants go into `blob`."""
    return {
        "buffers": [_buffer_to_plain(buffer, blob) for buffer in program.buffers],
        **{name: [_entry_to_plain(e) for e in getattr(program, name)] for name in ("calls", "commits", "between")},
        "outputs": {name: [place.buffer, place.offset] for name, place in program.outputs.items()},
    }


def program_from_plain(plain: Mapping[str, Any], blob: memoryview) -> Program:
    """The inverse. What it points to is checked by `Program.check`."""
    lists = {name: tuple(map(_entry_from_plain, plain[name])) for name in ("calls", "commits", "between")}
    return Program(
        buffers=tuple(_buffer_from_plain(buffer, blob) for buffer in plain["buffers"]),
        outputs={name: Place(*place) for name, place in plain["outputs"].items()},
        **lists,
    )


def _buffer_to_plain(buffer: Buffer, blob: Blob) -> list[Any]:
    if isinstance(buffer, Constant):
        return ["constant", *blob.add(buffer.data)]
    return ["scratch", buffer.nbytes] if isinstance(buffer, Scratch) else ["given", buffer.name, buffer.nbytes]


def _buffer_from_plain(plain: list[Any], blob: memoryview) -> Buffer:
    kind, *rest = plain
    if kind == "constant":
        return Constant(part(blob, rest))
    return Scratch(*rest) if kind == "scratch" else Given(*rest)


def _entry_to_plain(entry: Entry) -> list[Any]:
    assert entry.args is not None, "operations of the host are not kept"
    pointers = [[at, place.buffer, place.offset] for at, place in entry.pointers]
    return [entry.name, base64.b64encode(entry.args).decode(), pointers]


def _entry_from_plain(plain: list[Any]) -> Entry:
    name, args, pointers = plain
    return Entry(name, base64.b64decode(args), tuple((at, Place(buffer, offset)) for at, buffer, offset in pointers))
