"""What is kept of a model between runs, and how it is found again. No torch, no reader of model files.

    <cache>/programs/<library>-<python sources>/<key>     complete and checked, or absent

The key stands for the model's files (their paths, sizes and times of change) and for what shapes the program: the
format of the cache, the rows of a step, the arithmetic of prompts. The folder stands for the kernels (their sources,
compiler, flags and level) and for the Python that records, this version of it. Inside a file stand hashes of the files'
heads, all bytes up to their tensors. Whatever differs is as if it were not there: the model is recorded anew.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.cache.layout import PoolArray, PoolLayout
from stretto.convert.program_file import Damaged, part, program_from_plain, unpack
from stretto.convert.split_names import parts_of
from stretto.core.card import Can
from stretto.core.costs import TokenCost
from stretto.core.file_rows import FileRows
from stretto.core.files import write_whole
from stretto.core.pages import PageGroup
from stretto.core.pooling import Pooling
from stretto.kernels.native.library import Library, Team
from stretto.kernels.native.memory import MappedFile, Memory
from stretto.kernels.native.program import Given, Program, ProgramError
from stretto.kernels.native.tiles import TileSpec, tile_bytes, tile_files
from stretto.runner.kept import KeptModel
from stretto.runner.replay import Head
from stretto.runner.sizes import Facts

FORMAT = 3
_log = logging.getLogger(__name__)
KEEP_SECONDS = 30 * 24 * 3600  # since the last use
OTHER_BUILDS_SECONDS = 24 * 3600  # the same for programs of other versions
MAX_HEAD = 64 << 20  # bytes of a file without tensors that are hashed
_SUFFIXES = (".gguf", ".json", ".safetensors", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A program by what shapes it. path: of the model; kv: the setting; max_rows: of a step; prefill: the setting."""

    path: Path
    kv: str
    max_rows: int
    prefill: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file of a model: its size, time of change in nanoseconds, and the SHA-256 of its first bytes."""

    path: str
    nbytes: int
    changed: int
    head_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A program that was found, checked, and what else a start needs. weights: of its tiles; text: the plain values of
    `text.plain`, tokenizer_json beside them; hints: how its authors want it sampled; pooling: how its embeddings are
    made; notes: for its user; approximate: whether its format of keys and values is."""

    place: Path
    model: "_Model"
    facts: Facts
    text: Mapping[str, Any]
    tokenizer_json: str
    hints: Mapping[str, float]
    pooling: Pooling
    notes: Sequence[str]
    kv_is_approximate: bool

    @property
    def context(self) -> int:
        """Positions of a sequence that its program has room for, provisional rows too."""
        return self.model.context

    @property
    def vocab_size(self) -> int:
        """Tokens that have scores."""
        return self.model.vocab_size

    def load(self, team: Team, progress: Callable[[int, int], None] | None = None) -> KeptModel:
        """The model, with its weights in tiles. progress: called with (done, total) bytes."""
        return self.model.load(team, progress)


@dataclass(frozen=True, slots=True)
class Found:
    """kept: None with the reason `why`. place: where it is, or would be."""

    place: Path | None
    kept: Kept | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Model:
    """A model that is not loaded yet. tiles: per weight its spec, or its bytes."""

    arguments: Mapping[str, Any]
    context: int
    vocab_size: int
    tiles: Sequence[TileSpec | memoryview]

    def load(self, team: Team, progress: Callable[[int, int], None] | None) -> KeptModel:
        paths = {place.path for spec in self.tiles if isinstance(spec, TileSpec) for place in spec.pieces}
        files = {path: MappedFile(path) for path in paths}
        held = list[Memory]()
        for done, spec in enumerate(self.tiles, start=1):
            if isinstance(spec, TileSpec):
                held.append(tile_files(spec, files, team))
            else:
                held.append(Memory(len(spec)))
                held[-1].write(spec)
            if progress is not None:
                progress(done, len(self.tiles))
        addresses = {f"tiles.{i}": memory.address for i, memory in enumerate(held)}
        return KeptModel(**self.arguments, context=self.context, tiles=addresses.__getitem__, memory=held)


def find(wanted: Wanted, cache: Path, library: Library) -> Found:
    """What was kept of a model for these kernels. It is marked as used."""
    place: Path | None = None
    try:
        place = place_of(wanted, cache, library)
        if not is_private(place):
            return Found(place, why="nothing is kept yet")
        kept = _read(place, wanted, library)
        with suppress(OSError):  # a cache that can only be read may hold programs
            os.utime(place)
            os.utime(place.parent)
        return Found(place, kept)
    except (Damaged, ProgramError, OSError, KeyError, ValueError, TypeError, IndexError, AttributeError) as problem:
        why = f"what is kept is not used: {problem or type(problem).__name__}"
        _log.info("%s: %s", place, why)
        return Found(place, why=why)


def place_of(wanted: Wanted, cache: Path, library: Library) -> Path:
    """The file of a program."""
    stamps = [[path, status.st_size, status.st_mtime_ns] for path, status in files_of(wanted.path)]
    key = [FORMAT, str(wanted.path.resolve()), stamps, wanted.kv, wanted.max_rows, wanted.prefill]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return cache / "programs" / f"{library.build}-{_sources()}" / name


def files_of(path: Path) -> list[tuple[str, os.stat_result]]:
    """The files of a model that are read, sorted by path."""
    if path.is_dir():
        found = [
            p for folder in (path, path / "additional_chat_templates") if folder.is_dir() for p in folder.iterdir()
        ]
        found = [p for p in found if p.suffix.lower() in _SUFFIXES and p.is_file()]
    else:
        split = parts_of(path)
        found = [path] if split is None else [path.with_name(split.name(i + 1)) for i in range(split.count)]
    return sorted((str(p.resolve()), p.stat()) for p in found)


def stamp(path: str, status: os.stat_result, first_tensor: int | None) -> Stamp:
    """first_tensor: the byte where its tensors begin, None if it holds none."""
    head = min(status.st_size, MAX_HEAD) if first_tensor is None else first_tensor
    return Stamp(path, status.st_size, status.st_mtime_ns, head, _hash(path, head))


def save(place: Path, data: bytes) -> None:
    """Put a program into the cache, whole or not at all, and remove those that nobody uses any more. Raises OSError."""
    for folder in (place.parent.parent, place.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise PermissionError(f"{folder} belongs to another user")
        folder.chmod(0o700)
    _prune(place.parent)
    write_whole(place, data)


def is_private(place: Path) -> bool:
    """Whether a file is there that its folder's owner, and nobody else, may have written: this user. Raises
    PermissionError if it is somebody else's."""
    if not place.is_file():
        return False
    for path in (place.parent.parent, place.parent, place):
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(f"{path} can be written by others")
    return True


def _prune(current: Path) -> None:
    now = time.time()
    for build in current.parent.iterdir():
        with suppress(OSError):
            if build != current and now - build.stat().st_mtime >= OTHER_BUILDS_SECONDS:
                shutil.rmtree(build, ignore_errors=True)
    for program in current.iterdir():
        with suppress(OSError):
            if now - program.stat().st_mtime >= KEEP_SECONDS:
                program.unlink()


def _read(place: Path, wanted: Wanted, library: Library) -> Kept:
    plain, blob = unpack(place.read_bytes())
    if plain["format"] != FORMAT:
        raise Damaged("it has another format")
    if plain["max_rows"] != wanted.max_rows:
        raise Damaged("it is for other steps")
    stamps = [Stamp(*one) for one in plain["files"]]
    _check_files(stamps, wanted.path)
    program = program_from_plain(plain["program"], blob)
    program.check(library)
    sizes = {one.path: one.nbytes for one in stamps}
    orders = [tuple(map(int, order)) for order in plain["orders"]]
    tiles = [_tile(one, orders, [s.path for s in stamps], blob) for one in plain["tiles"]]
    for spec in tiles:
        for rows in spec.pieces if isinstance(spec, TileSpec) else ():
            _check_rows(rows, sizes[rows.path])
    tile_sizes = [tile_bytes(library, t.format, t.d_in, t.d_out) if isinstance(t, TileSpec) else len(t) for t in tiles]
    groups = tuple(PageGroup(window) for window in plain["layout"]["groups"])
    layout = PoolLayout(groups, tuple(PoolArray(*one) for one in plain["layout"]["arrays"]))
    _check_given(program, tile_sizes, layout)
    arguments = {
        "program": program,
        "head": Head(*map(int, plain["head"])),
        "layout": layout,
        "abilities": tuple((i, name, Can(can)) for i, name, can in plain["abilities"]),
        "token_cost": TokenCost(**plain["token_cost"]),
        "max_rows": plain["max_rows"],
    }
    return Kept(
        place,
        _Model(arguments, int(plain["context"]), arguments["head"].vocab_size, tiles),
        Facts(**plain["facts"], layout=layout),
        plain["text"],
        str(part(blob, plain["tokenizer"]), "utf-8"),
        plain["hints"],
        Pooling(*plain["pooling"]),
        plain["notes"],
        plain["kv_is_approximate"],
    )


def _tile(
    plain: Mapping[str, Any], orders: Sequence[tuple[int, ...]], paths: Sequence[str], blob: memoryview
) -> TileSpec | memoryview:
    if "data" in plain:
        return part(blob, plain["data"])
    pieces = (
        FileRows(paths[file], start, row_bytes, num_rows, None if order is None else orders[order])
        for file, start, row_bytes, num_rows, order in plain["pieces"]
    )
    return TileSpec(plain["format"], plain["d_in"], plain["d_out"], tuple(pieces))


def _check_rows(rows: FileRows, nbytes: int) -> None:
    order = rows.order or (0,)
    fits = 0 <= rows.start <= rows.start + rows.num_rows * rows.row_bytes <= nbytes
    if not fits or rows.num_rows < 1 or min(order) < 0 or max(order) >= rows.num_rows:
        raise Damaged("it names rows that its file does not have")


def _check_given(program: Program, tile_sizes: Sequence[int], layout: PoolLayout) -> None:
    """What a program asks for must be there, and as large as it says."""
    there = {f"tiles.{i}": nbytes for i, nbytes in enumerate(tile_sizes)}
    there |= {f"pool.{i}.{n}": a.unit_bytes for i, a in enumerate(layout.arrays) for n in range(a.layers)}
    for buffer in program.buffers:
        if isinstance(buffer, Given) and there.get(buffer.name) != buffer.nbytes:
            raise Damaged(f"it asks for {buffer.name}, which is not there or of another size")


def _check_files(stamps: Sequence[Stamp], path: Path) -> None:
    there = [(name, status.st_size, status.st_mtime_ns) for name, status in files_of(path)]
    if [(one.path, one.nbytes, one.changed) for one in stamps] != there:
        raise Damaged("the model's files have changed")
    for one in stamps:
        if _hash(one.path, one.head_bytes) != one.sha256:
            raise Damaged(f"the head of {one.path} has changed")


def _hash(path: str, head_bytes: int) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(head_bytes)).hexdigest()


def _sources() -> str:
    """A hash of the sizes and times of all files of this package: whoever works on it records anew."""
    root = str(Path(__file__).parents[1])
    found = hashlib.sha256()
    for path, status in sorted(_walk(root)):
        found.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return found.hexdigest()[:12]


def _walk(folder: str) -> Iterable[tuple[str, os.stat_result]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _walk(entry.path)
        elif entry.name.endswith(".py"):
            yield entry.path, entry.stat()
