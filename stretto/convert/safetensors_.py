"""safetensors: a bounded reader over one file or the shards of an index, and a writer that streams.

    u64 N (little endian) | N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}} | bytes of the tensors

Offsets count from the end of the header. Tensors must cover the data exactly: no overlap, no hole. The JSON key
`__metadata__` maps strings to strings. Rows of int8 are two tensors: the integers, and the scales of the rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from torch import Tensor

from stretto.codecs.int8 import split
from stretto.convert._shared import (
    MAX_VALUES,
    absent,
    codec_named,
    damaged,
    map_file,
    product,
    quoted,
    replace_file,
    write_tensor,
)
from stretto.convert.quantized.compressed_tensors import INT8, SCALE
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, UserError
from stretto.core.file_rows import FileRows

MAX_HEADER = 100_000_000  # bytes
MAX_MARKS = 1 << 22  # commas and brackets of the header: bounds what parsing it can allocate
MAX_DIMS = 8
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32}
_BITS |= {"U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_CODECS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_DTYPES = {codec: dtype for dtype, codec in _CODECS.items()}
HELD = (*_DTYPES, INT8)
"""Codecs that a file can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One file. Everything but the tensors' values is checked when it is opened.

    metadata: the file's own strings. Where one of them is the name of a tensor, its key is another name of the same
    tensor: `safetensors.torch.save_model` keeps one of the names that share memory, and says so there.
    Raises ModelFileError for any damage, UserError if there is no such file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        data, self._bytes = map_file(self.path)
        size = len(data)
        length = int.from_bytes(data[:8], "little")
        if length > size - 8:  # also for files shorter than 8 bytes
            raise damaged(self.path, f"is cut off: the header is {length} bytes, the file {size}")
        if length > MAX_HEADER:
            raise damaged(self.path, f"has a header of {length} bytes; at most {MAX_HEADER} are allowed")
        header = _load_json(self.path, data[8 : 8 + length])
        self._start = 8 + length
        self.metadata = _strings(self.path, header.pop("__metadata__", {}), "__metadata__")
        self._entries = {name: self._entry(name, value) for name, value in header.items()}
        self._check_cover(size - self._start)
        named = [(alias, self._entries.get(name)) for alias, name in self.metadata.items()]
        for alias, entry in named:
            if entry is not None:
                self._entries.setdefault(alias, entry)

    def names(self) -> list[str]:
        """The tensors, in the order of the header."""
        return list(self._entries)

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The dtype of a tensor as the file spells it, and its shape. ModelFileError for unknown names."""
        entry = self._entry_of(name)
        return entry.dtype, entry.shape

    def raw(self, name: str) -> Tensor:
        """The bytes of a tensor, uint8 [n]: a view of the file. ModelFileError for unknown names."""
        entry = self._entry_of(name)
        return self._bytes[self._start + entry.begin : self._start + entry.end]

    def held(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The codec and the shape of a tensor. ModelFileError for unknown names and dtypes other than F32 F16 BF16."""
        entry = self._entry_of(name)
        codec = _CODECS.get(entry.dtype)
        if codec is None:
            raise ModelFileError(
                f"{self.path}: tensor {quoted(name)} has dtype {quoted(entry.dtype)}",
                why="F32, F16 and BF16 can be read",
                try_="a checkpoint in one of them",
            )
        return codec, entry.shape

    def stored(self, name: str) -> Stored:
        """A tensor as a view of the file. Errors as those of `held`."""
        codec_name, shape = self.held(name)
        codec = codec_named(codec_name)
        # Not `row_bytes` of the last dimension: a scalar has none.
        width = shape[-1] if shape else 1
        row_bytes, place = codec.row_bytes(width), None
        if len(shape) == 2:
            place = FileRows(str(self.path), self._start + self._entry_of(name).begin, row_bytes, shape[0])
        return Stored(codec, shape, self.raw(name).view(*shape[:-1], row_bytes), place)

    def _entry_of(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise absent(self.path, name, self._entries)
        return entry

    def _entry(self, name: str, value: object) -> _Entry:
        """One checked line of the header (its place among the others is checked later)."""
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self._bad(name, "must have exactly dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str):
            raise self._bad(name, "has a dtype that is not a string")
        if not _naturals(shape) or len(shape) > MAX_DIMS or product(shape, floor=1) > MAX_VALUES:
            raise self._bad(name, f"has an impossible shape (at most {MAX_DIMS} dimensions, 2^48 values)")
        if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._bad(name, "has impossible data_offsets")
        begin, end = offsets
        bits = _BITS.get(dtype)
        if bits is not None and product(shape) * bits != (end - begin) * 8:
            raise self._bad(name, f"has {end - begin} bytes, not the size of {dtype} {shape}")
        return _Entry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)

    def _check_cover(self, size: int) -> None:
        """The tensors lie one after the other and fill the data."""
        position = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.end > size:
                raise self._bad(name, f"ends at byte {entry.end} of {size}: the file is cut off")
            if entry.begin != position:
                kind = "overlaps the one before it" if entry.begin < position else "leaves a hole before it"
                raise self._bad(name, kind)
            position = entry.end
        if position != size:
            raise damaged(self.path, f"has {size - position} bytes after its last tensor")

    def _bad(self, name: str, what: str) -> ModelFileError:
        return damaged(self.path, f"tensor {quoted(name)} {what}")


class ShardedSafetensors:
    """Several files behind one `*.safetensors.index.json`; the same interface as one file.

    metadata: the strings of all shards (the first shard that has a key wins).
    """

    def __init__(self, index: Path | str) -> None:
        self.path = Path(index)
        data, _ = map_file(self.path)
        if len(data) > MAX_HEADER:
            raise damaged(self.path, f"is larger than {MAX_HEADER} bytes")
        content = _load_json(self.path, data[:])
        self._files = _strings(self.path, content.get("weight_map"), "weight_map")
        shards = {file: self._open(file) for file in dict.fromkeys(self._files.values())}
        self._shards = {name: shards[file] for name, file in self._files.items()}
        held = {file: set(shard.names()) for file, shard in shards.items()}
        for name, file in self._files.items():
            if name not in held[file]:
                raise damaged(self.path, f"tensor {quoted(name)} is not in {quoted(file)}, where the index says")
        self.metadata: dict[str, str] = {}
        for shard in shards.values():
            self.metadata = shard.metadata | self.metadata

    def names(self) -> list[str]:
        """The tensors, in the order of the index."""
        return list(self._files)

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As `SafetensorsFile.kind`."""
        return self._shard(name).kind(name)

    def raw(self, name: str) -> Tensor:
        """As `SafetensorsFile.raw`."""
        return self._shard(name).raw(name)

    def held(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As `SafetensorsFile.held`."""
        return self._shard(name).held(name)

    def stored(self, name: str) -> Stored:
        """As `SafetensorsFile.stored`."""
        return self._shard(name).stored(name)

    def _shard(self, name: str) -> SafetensorsFile:
        if name not in self._shards:
            raise absent(self.path, name, self._files)
        return self._shards[name]

    def _open(self, file: str) -> SafetensorsFile:
        # Only the spelling is checked: the model caches of hubs are directories of symbolic links to elsewhere.
        parts = PurePosixPath(file).parts
        outside = not parts or parts[0] == "/" or ".." in parts or "\\" in file or PureWindowsPath(file).drive
        if outside or "\0" in file:
            raise damaged(self.path, f"names the shard {quoted(file)}", why="a shard lies in the index's directory")
        path = self.path.parent / file
        if not path.is_file():
            raise damaged(self.path, f"needs the shard {quoted(file)}, which is missing")
        return SafetensorsFile(path)


def open_checkpoint(directory: Path | str) -> SafetensorsFile | ShardedSafetensors:
    """The weights of a checkpoint directory: `model.safetensors`, else the shards of `model.safetensors.index.json`.

    UserError if there is no such directory, ModelFileError if it has neither file or they are damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory", try_="the directory that holds config.json")
    if (directory / "model.safetensors").is_file():
        return SafetensorsFile(directory / "model.safetensors")
    if (directory / "model.safetensors.index.json").is_file():
        return ShardedSafetensors(directory / "model.safetensors.index.json")
    raise ModelFileError(
        f"{directory} has neither model.safetensors nor model.safetensors.index.json",
        why="weights are read from safetensors and GGUF files only; pickled ones (.bin, .pt) can run code",
        try_="a safetensors version of the checkpoint",
    )


def write_safetensors(
    path: Path | str,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    load: Callable[[str], Stored],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file, holding one tensor at a time.

    tensors: name -> (codec f32 | f16 | bf16 | int8, shape); load: name -> that tensor, called once each while writing.
    metadata: the file's own strings; the default {"format": "pt"} is what other readers expect.
    Raises UserError for other codecs, RunError if it cannot be written; `path` is then as it was.
    """
    parts = {name: _parts(name, codec, shape) for name, (codec, shape) in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    begins, position = dict[str, int](), 0
    # Numbers of many bytes first: then every tensor starts at a multiple of its item size.
    for part in sorted((p for held in parts.values() for p in held), key=lambda p: -_BITS[p.dtype]):
        begins[part.name], end = position, position + product(part.shape) * _BITS[part.dtype] // 8
        header[part.name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(parts, key=lambda name: begins[parts[name][0].name]):
            stored, (codec, shape) = load(name), tensors[name]
            assert stored.codec.name == codec and stored.shape == shape, f"{name}: not {codec} {shape}"
            values = split(stored) if codec == INT8 else (stored.data,)
            for part, value in zip(parts[name], values, strict=True):
                file.seek(8 + len(text) + begins[part.name])
                write_tensor(file, value)

    replace_file(Path(path), write)


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of the file: one of ours, or the integers or the scales of one."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def _parts(name: str, codec: str, shape: tuple[int, ...]) -> tuple[_Part, ...]:
    if name == "__metadata__":
        raise UserError("a tensor cannot be called '__metadata__'", why="the format uses that name")
    if codec == INT8:
        return _Part(name, "I8", shape), _Part(name + SCALE, "F32", (*shape[:-1], 1))
    if codec not in _DTYPES:
        raise UserError(f"tensor {quoted(name)}: safetensors files hold {', '.join(HELD)}, not {codec!r}")
    return (_Part(name, _DTYPES[codec], shape),)


def _load_json(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MAX_MARKS:
        raise damaged(path, "has a header of too many values")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise damaged(path, f"has the name {quoted(twice)} twice")
        return found

    try:
        content = json.loads(text.decode(), object_pairs_hook=unique)
    except ModelFileError:
        raise
    except (ValueError, RecursionError) as e:  # not UTF-8, not JSON, a number of thousands of digits, too deep
        raise damaged(path, "has a header that is not valid JSON") from e
    if not isinstance(content, dict):
        raise damaged(path, "has a header that is not a JSON object")
    return content


def _strings(path: Path, value: object, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise damaged(path, f"has a {what} that is not a map from strings to strings")
    return value


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
