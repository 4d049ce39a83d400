"""A prefix of a text as a safetensors file: what the cache holds of it, for the same model, run in the same way.

    "tokens"      I32 [tokens]
    "pages.I"     U8 [layers, tokens from `firsts` on, bytes], array I of the pools, token by token
    "states.I"    U8 [layers, states, bytes]

The metadata says whose it is: format, model (SHA-256 of its files), kv (the format of keys and values), arithmetic
(who computed it), layout (the arrays of the pools), firsts and ends (`Extent`), and a SHA-256 of all the rest.
A file is used if its header is, to the byte, the one that a writer would have made for this engine, its size follows
from that header, and the checksum fits. So sizes are known before memory is taken. A checksum finds damage, not malice:
who can write the file decides what the model believes to have read, and no more than that.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from stretto.cache.layout import PoolLayout
from stretto.cache.transfer import Extent, Prefix
from stretto.convert.kept import files_of
from stretto.core.errors import RunError, UserError
from stretto.core.files import write_whole

FORMAT = "stretto prefix 1"
MAX_HEADER = 1 << 20  # bytes
_ANEW = "save the prefix again, with this model and these settings"


@dataclass(frozen=True, slots=True)
class Identity:
    """Of an engine: what must be the same for the bytes to mean the same. See the metadata above."""

    model: str
    kv: str
    arithmetic: str
    layout: str

    @staticmethod
    def of(model: str, kv: str, arithmetic: str, layout: PoolLayout) -> "Identity":
        """layout: what of it the order of the bytes depends on."""
        groups = [group.window for group in layout.groups]
        arrays = [[a.group, a.layers, a.numbers, a.item_bytes] for a in layout.arrays]
        return Identity(model, kv, arithmetic, json.dumps([groups, arrays]))


def hash_model(path: Path) -> str:
    """SHA-256 over the names and all bytes of a model's files, wherever they lie. Raises OSError."""
    found = hashlib.sha256()
    for name, _ in files_of(path):
        with open(name, "rb") as file:
            found.update(f"{Path(name).name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def write_prefix(path: Path, prefix: Prefix, layout: PoolLayout, identity: Identity) -> None:
    """Write the file, whole or not at all, for its owner alone. Raises RunError."""
    parts = [array("i", prefix.tokens).tobytes(), *prefix.data]
    digest = _digest(_header(identity, layout, prefix.extent, ""), parts)
    try:
        write_whole(path, b"".join((_header(identity, layout, prefix.extent, digest), *parts)))
    except OSError as problem:
        raise RunError(f"{path} cannot be written", why=problem.strerror, try_="another place") from None


def read_prefix(path: Path, layout: PoolLayout, identity: Identity, *, context: int, vocab_size: int) -> Prefix:
    """The prefix of a file that was written for this engine.

    context: a longer text is of no use to it. Raises UserError for any other file, naming what differs.
    """
    if not path.is_file():  # before opening: opening a pipe would wait for ever
        raise UserError(f"there is no file {path}", try_="a file that was saved as a prefix")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 0 < length <= min(MAX_HEADER, size - 8):
                raise _damaged(path, "it does not begin with a header")
            header = start + file.read(length)
            extent, digest = _check_header(path, header, layout, identity)
            if extent.num_tokens >= context:
                why = f"it has {extent.num_tokens:,} tokens; the context is {context:,}"
                raise UserError(f"{path} holds a longer text than fits", why=why, try_="a larger context (--ctx)")
            sizes = list(_sizes(layout, extent))
            if len(header) + sum(sizes) != size:
                raise _damaged(path, f"it has {size:,} bytes in place of {len(header) + sum(sizes):,}")
            data = memoryview(file.read(sum(sizes)))
    except OSError as problem:
        raise UserError(f"{path} cannot be read", why=problem.strerror) from None
    begins = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = [data[begin:end] for begin, end in pairwise(begins)]
    if len(data) != sum(sizes) or _digest(_header(identity, layout, extent, ""), parts) != digest:
        raise _damaged(path, "its checksum differs")
    tokens = array("i", bytes(parts[0]))
    if not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise _damaged(path, "it has tokens that this model does not know")
    return Prefix(tuple(tokens), extent, parts[1:])


def _check_header(path: Path, header: bytes, layout: PoolLayout, identity: Identity) -> tuple[Extent, str]:
    """What a header says besides what it must say."""
    try:
        entries: Any = json.loads(header[8:])
        said = entries["__metadata__"]
        shape, firsts, ends = entries["tokens"]["shape"], json.loads(said["firsts"]), json.loads(said["ends"])
        found, digest = said["format"], said["sha256"]
        differing = [name for name, value in asdict(identity).items() if said[name] != value]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path, "its header is not that of a prefix") from None
    if found != FORMAT:
        raise UserError(f"{path} has the format {str(found)[:40]!r}", why=f"{FORMAT!r} is read", try_=_ANEW)
    if differing:
        name = differing[0]
        why = "its model differs" if name == "model" else f"its {name} differs: {str(said[name])[:80]}"
        raise UserError(f"{path} was saved for another engine", why=why, try_=_ANEW)
    if not (_naturals(shape) and len(shape) == 1 and _naturals(firsts) and _naturals(ends)):
        raise _damaged(path, "its header names impossible sizes")
    extent = Extent(shape[0], tuple(firsts), tuple(ends))
    if not extent.is_sound(layout) or _header(identity, layout, extent, str(digest)) != header:
        raise _damaged(path, "its header is not the one that its content has")
    return extent, str(digest)


def _header(identity: Identity, layout: PoolLayout, extent: Extent, digest: str) -> bytes:
    """The bytes in front of the data: they follow from what is there. digest: "" while it is being computed."""
    places = {"firsts": json.dumps(extent.firsts), "ends": json.dumps(extent.ends)}
    entries: dict[str, Any] = {"__metadata__": {"format": FORMAT, **asdict(identity), **places, "sha256": digest}}
    names = ["tokens", *(f"{'states' if a.group is None else 'pages'}.{i}" for i, a in enumerate(layout.arrays))]
    shapes = [[extent.num_tokens], *(list(extent.shape(layout, i)) for i in range(len(layout.arrays)))]
    begin = 0
    for name, shape, size in zip(names, shapes, _sizes(layout, extent), strict=True):
        dtype = "I32" if name == "tokens" else "U8"
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sizes(layout: PoolLayout, extent: Extent) -> Iterator[int]:
    """Bytes of the tensors, in order."""
    yield 4 * extent.num_tokens
    for number in range(len(layout.arrays)):
        layers, count, width = extent.shape(layout, number)
        yield layers * count * width


def _digest(header: bytes, parts: Sequence[bytes | memoryview]) -> str:
    found = hashlib.sha256(header)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 31 for one in value)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is no prefix, or damaged", why=why, try_=_ANEW)
