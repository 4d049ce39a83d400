"""GGUF: a bounded reader of versions 2 and 3, and a writer of version 3 that streams. Little endian.

    "GGUF" | u32 version | u64 tensors | u64 pairs | pairs | table | padding | bytes of the tensors
    a pair: key, u32 kind, value
    a table line: name, u32 dims, u64 dim[dims] (fastest first), u32 type, u64 offset from the start of the data

A string is u64 length + UTF-8; an array is u32 kind + u64 count + values. The data and every tensor in it start at
multiples of `general.alignment` (32).
"""

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stretto.codecs._shared import check_finite
from stretto.convert._shared import (
    MAX_VALUES,
    absent,
    codec_named,
    damaged,
    map_file,
    product,
    quoted,
    replace_file,
    write_bytes,
)
from stretto.core.card import CODECS
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, UserError
from stretto.core.file_rows import FileRows

MAGIC = b"GGUF"
_TYPES = [(number, name) for name in CODECS.names() if (number := codec_named(name).gguf_type) is not None]
CODEC_OF_TYPE = dict(sorted(_TYPES))
"""What each ggml type is called here: the codecs say it themselves."""
TYPE_OF_CODEC = {codec: number for number, codec in CODEC_OF_TYPE.items()}
MAX_PAIRS, MAX_TENSORS, MAX_STRING, MAX_ALIGNMENT = 1 << 16, 1 << 17, 1 << 24, 1 << 16
MAX_ELEMENTS = 1 << 24  # of all arrays of a file together
MAX_DIMS, MAX_DEPTH = 4, 2

Kind = Literal["u8", "i8", "u16", "i16", "u32", "i32", "f32", "u64", "i64", "f64"]
_KINDS: dict[int, tuple[Kind, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_NUMBERS = {kind: (number, letter) for number, (kind, letter) in _KINDS.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One line of the table. shape: in torch order; start: first byte in the file."""

    codec: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Typed:
    """A number, or a list of numbers, to be written as a given kind."""

    kind: Kind
    value: int | float | Sequence[int] | Sequence[float]


Value = str | bool | int | float | Typed | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]


class GGUFFile:
    """One file. Everything but the tensors' values is checked when it is opened.

    metadata: key -> str, bool, int, float or list of them. tensors: name -> TensorInfo, in the order of the table.
    Raises ModelFileError for any damage, UserError if there is no such file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        data, self._bytes = map_file(self.path)
        cursor = _Cursor(self.path, data)
        num_tensors, num_pairs = _read_start(cursor)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = cursor.string("a key")
            if key in self.metadata:
                raise cursor.bad(f"has the key {quoted(key)} twice")
            self.metadata[key] = cursor.value(cursor.u32("a kind"), f"the value of {quoted(key)}")
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise cursor.bad("has a general.alignment that is no power of two up to 65536")
        lines = [self._read_line(cursor, alignment) for _ in range(num_tensors)]
        start = -(-cursor.position // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, codec, shape, offset, nbytes in lines:
            if name in self.tensors:
                raise cursor.bad(f"has the tensor {quoted(name)} twice")
            if start + offset + nbytes > cursor.size:
                raise cursor.bad(f"tensor {quoted(name)} ends behind the file, which is cut off")
            self.tensors[name] = TensorInfo(codec=codec, shape=shape, start=start + offset, nbytes=nbytes)
        self._check_disjoint()

    def names(self) -> list[str]:
        """The tensors, in the order of the table."""
        return list(self.tensors)

    def stored(self, name: str, check: bool = True) -> Stored:
        """A tensor as a view of the file, in torch's order of dimensions. ModelFileError for unknown names.

        check: read the scales (or plain values) once and refuse NaN and infinity.
        """
        info = self.tensors.get(name)
        if info is None:
            raise absent(self.path, name, self.tensors)
        codec = codec_named(info.codec)
        width = info.shape[-1] if info.shape else 1
        data = self._bytes[info.start : info.start + info.nbytes]
        place = None
        if len(info.shape) == 2:
            place = FileRows(str(self.path), info.start, codec.row_bytes(width), info.shape[0])
        stored = Stored(codec, info.shape, data.view(*info.shape[:-1], codec.row_bytes(width)), place)
        if check:
            check_finite(stored, name, str(self.path))
        return stored

    def _read_line(self, cursor: "_Cursor", alignment: int) -> tuple[str, str, tuple[int, ...], int, int]:
        """(name, codec, shape, offset, bytes) of the next tensor."""
        name = cursor.string("a tensor's name")
        num_dims = cursor.u32("a number of dimensions")
        if num_dims > MAX_DIMS:
            raise cursor.bad(f"tensor {quoted(name)} has {num_dims} dimensions; at most {MAX_DIMS} are allowed")
        shape = tuple(reversed([cursor.u64("a dimension") for _ in range(num_dims)]))
        number, offset = cursor.u32("a type"), cursor.u64("an offset")
        codec_name = CODEC_OF_TYPE.get(number)
        if codec_name is None:
            raise ModelFileError(
                f"{self.path}: tensor {quoted(name)} has the ggml type {number}, which cannot be read",
                why=f"these can: {', '.join(f'{codec} ({n})' for n, codec in CODEC_OF_TYPE.items())}",
                try_="another quantization of the model",
            )
        codec = codec_named(codec_name)
        if product(shape, floor=1) > MAX_VALUES:
            raise cursor.bad(f"tensor {quoted(name)} has an impossible shape")
        width = shape[-1] if shape else 1
        if width % codec.block:
            raise cursor.bad(f"tensor {quoted(name)} has rows of {width} values, not blocks of {codec.block}")
        if offset % alignment:
            raise cursor.bad(f"tensor {quoted(name)} does not start at a multiple of {alignment} bytes")
        return name, codec_name, shape, offset, product(shape[:-1]) * codec.row_bytes(width)

    def _check_disjoint(self) -> None:
        end, before = 0, ""
        for name, info in sorted(self.tensors.items(), key=lambda item: item[1].start):
            if info.nbytes == 0:
                continue
            if info.start < end:
                raise damaged(self.path, f"tensors {quoted(before)} and {quoted(name)} overlap")
            end, before = info.start + info.nbytes, name


class _Cursor:
    """Reads a file forwards; every length is checked against what is left before it is used."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.position, self.elements = 0, 0

    def bad(self, what: str) -> ModelFileError:
        return damaged(self.path, what)

    def take(self, n: int, what: str) -> int:
        """Step over `n` bytes; where they begin."""
        begin = self.position
        if n > self.size - begin:
            raise self.bad(f"is cut off in {what} (at byte {begin} of {self.size})")
        self.position = begin + n
        return begin

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.take(8, what))[0])

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, n: int, what: str) -> list[str]:
        # Written out, not built on `take`: vocabularies have 10^5 entries.
        data, position, size, unpack = self.data, self.position, self.size, _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(n):
                first = position + 8
                if first > size:
                    raise self.bad(f"is cut off in {what} (at byte {position} of {size})")
                length = unpack(data, position)[0]
                if length > MAX_STRING:
                    raise self.bad(f"has a string of {length} bytes in {what}; at most {MAX_STRING} are allowed")
                position = first + length
                if position > size:
                    raise self.bad(f"is cut off in {what} (at byte {first} of {size})")
                found.append(data[first:position].decode())
        except UnicodeDecodeError as e:
            raise self.bad(f"has text that is not UTF-8 in {what}") from e
        self.position = position
        return found

    def numbers(self, number: int, n: int, what: str) -> list[Any]:
        letter = _KINDS[number][1]
        begin = self.take(n * struct.calcsize(f"<{letter}"), what)
        return list(struct.unpack_from(f"<{n}{letter}", self.data, begin))

    def bools(self, n: int, what: str) -> list[bool]:
        begin = self.take(n, what)
        raw = self.data[begin : begin + n]
        if raw.strip(b"\0\1"):
            raise self.bad(f"has a truth value other than 0 and 1 in {what}")
        return [byte == 1 for byte in raw]

    def value(self, number: int, what: str) -> Any:
        return self.array(what, 1) if number == _ARRAY else self.values(number, 1, what, 0)[0]

    def array(self, what: str, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise self.bad(f"has arrays nested more than {MAX_DEPTH} deep in {what}")
        number, n = self.u32(what), self.u64(what)
        self.elements += n
        if self.elements > MAX_ELEMENTS:
            raise self.bad(f"has more than {MAX_ELEMENTS} array elements, {n} of them in {what}")
        return self.values(number, n, what, depth)

    def values(self, number: int, n: int, what: str, depth: int) -> list[Any]:
        if number in _KINDS:
            return self.numbers(number, n, what)
        if number == _BOOL:
            return self.bools(n, what)
        if number == _STRING:
            return self.strings(n, what)
        if number == _ARRAY:
            return [self.array(what, depth + 1) for _ in range(n)]
        raise self.bad(f"has the unknown kind {number} in {what}")


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """(tensors, pairs)."""
    begin = cursor.take(4, "its first bytes")
    if cursor.data[begin : begin + 4] != MAGIC:
        raise ModelFileError(f"{cursor.path} is not a GGUF file", why="it does not begin with the letters GGUF")
    version = cursor.u32("its version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = "a big-endian file" if swapped in (2, 3) else f"version {version}"
        raise ModelFileError(
            f"{cursor.path} cannot be read: {kind}",
            why="little-endian GGUF of versions 2 and 3 can",
            try_="a newer conversion of the model",
        )
    num_tensors, num_pairs = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    if num_tensors > MAX_TENSORS or num_pairs > MAX_PAIRS:
        raise cursor.bad(
            f"declares {num_tensors} tensors and {num_pairs} keys: more than {MAX_TENSORS} and {MAX_PAIRS}"
        )
    return num_tensors, num_pairs


def write_gguf(
    path: Path | str,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    load: Callable[[str], Stored],
) -> None:
    """Write a version 3 file, holding one tensor at a time.

    metadata: strings, truth values, numbers and lists of one of these. An int is written as the first of u32, i32,
    u64, i64 that holds it (all elements of a list), a float as f32; `Typed` says otherwise.
    tensors: name -> (codec, shape in torch order); load: name -> that tensor, called once each while writing.
    Raises UserError for what the format cannot hold, RunError if it cannot be written; `path` is then as it was.
    """
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise UserError(f"general.alignment {alignment!r} is no power of two up to {MAX_ALIGNMENT}")
    table, offset = [], 0
    for name, (codec_name, shape) in tensors.items():
        if codec_name not in TYPE_OF_CODEC or len(shape) > MAX_DIMS:
            raise UserError(f"a GGUF file cannot hold tensor {quoted(name)}: {codec_name} {list(shape)}")
        codec = codec_named(codec_name)
        width = shape[-1] if shape else 1
        if width % codec.block:
            raise UserError(f"tensor {quoted(name)}: rows of {width} values are no multiple of {codec.block}")
        dims = b"".join(_U64.pack(dim) for dim in reversed(shape))
        ends = _U32.pack(TYPE_OF_CODEC[codec_name]) + _U64.pack(offset)
        table.append(_string(name) + _U32.pack(len(shape)) + dims + ends)
        nbytes = product(shape[:-1]) * codec.row_bytes(width)
        offset += nbytes + -nbytes % alignment
    pairs = [_string(key) + _value(key, value) for key, value in metadata.items()]
    head = MAGIC + _U32.pack(3) + _U64.pack(len(table)) + _U64.pack(len(pairs)) + b"".join(pairs + table)

    def write(file: BinaryIO) -> None:
        file.write(head + bytes(-len(head) % alignment))
        for name, (codec_name, shape) in tensors.items():
            stored = load(name)
            assert stored.codec.name == codec_name and stored.shape == shape, f"{name}: not {codec_name} {shape}"
            write_bytes(file, stored)
            file.write(bytes(-stored.nbytes % alignment))

    replace_file(Path(path), write)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _U64.pack(len(raw)) + raw


def _value(key: str, value: Value) -> bytes:
    """u32 kind and the value."""
    given = value.kind if isinstance(value, Typed) else None
    content = value.value if isinstance(value, Typed) else value
    if isinstance(content, Sequence) and not isinstance(content, str):
        number, raw = _elements(key, list(content), given)
        return _U32.pack(_ARRAY) + _U32.pack(number) + _U64.pack(len(content)) + raw
    number, raw = _elements(key, [content], given)
    return _U32.pack(number) + raw


def _elements(key: str, values: list[Any], kind: Kind | None) -> tuple[int, bytes]:
    """(kind number, bytes) of values of one type; an empty list is one of strings."""
    types = set(map(type, values))
    if kind is None and types <= {str}:
        return _STRING, b"".join(map(_string, values))
    if kind is None and types == {bool}:
        return _BOOL, bytes(values)
    if kind is None and types == {int}:
        low, high = min(values), max(values)
        if low >= 0:
            kind = "u32" if high < 1 << 32 else "u64"
        else:
            kind = "i32" if low >= -(1 << 31) and high < 1 << 31 else "i64"
    elif kind is None and types == {float}:
        kind = "f32"
    if kind is None:
        raise UserError(f"metadata {quoted(key)} is not a string, truth value, number or list of one of these")
    number, letter = _NUMBERS[kind]
    try:
        return number, struct.pack(f"<{len(values)}{letter}", *values)
    except (struct.error, OverflowError) as e:
        raise UserError(f"metadata {quoted(key)} does not fit into {kind}") from e
