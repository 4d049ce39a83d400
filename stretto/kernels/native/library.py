"""The compiled library through ctypes: operations and structs by name, and pools of threads that run lists of them.

Structs, enums and limits stand in the C++ sources only; the library says what they are (include/fields.h).
"""

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from stretto.core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

SPIN_SECONDS = 200e-6  # how long idle threads watch for work before they sleep: the pause between two steps


class Op(ctypes.Structure):
    """One entry of a list: functions and their arguments (`Op` of include/op.h)."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("chunks", "run", "args", "reads")]


Value = Union["Tensor", ctypes.Structure, "ctypes.Array[Any]", int, float, None]
"""What a field of an argument struct takes."""
Fields = dict[str, Value]
_KINDS: Mapping[str, type] = {
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u32": ctypes.c_uint32,
    "f32": ctypes.c_float,
    "ptr": ctypes.c_void_p,
}


class Library:
    """A loaded library. level: the instruction-set level it was compiled for; build: the name of its folder, which
    stands for its sources, compiler and flags.

    Raises RunError if it cannot be loaded: its file is damaged, or nothing may be executed where the cache is.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._lib = ctypes.CDLL(str(path))
        except OSError as problem:
            raise RunError(
                "the native kernels cannot be loaded", why=str(problem), try_=f"remove {path.parent}, or STRETTO_CACHE"
            ) from problem
        self.build = path.parent.name
        self._lib.level.restype = ctypes.c_char_p
        self.level: str = self._lib.level().decode()
        for name in ("team_new", "weight_tile_bytes"):
            getattr(self._lib, name).restype = ctypes.c_int64
        self._lib.team_new.argtypes = [ctypes.c_int32, ctypes.c_int64]
        self._lib.team_free.argtypes = [ctypes.c_int64]
        self._lib.team_run.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._lib.team_run_while.argtypes = [*self._lib.team_run.argtypes, ctypes.c_void_p]
        self._structs: dict[str, type[ctypes.Structure]] = {}
        self._enums: dict[str, tuple[str, ...]] = {}

    def struct(self, name: str) -> type[ctypes.Structure]:
        """The class of a struct that the library exports: the arguments of an operation, `Step`, `Commit`, `Row`."""
        if name not in self._structs:
            fields = [field.split(":") for field in self._text(f"{name}_fields").split()]
            made = type(
                name, (ctypes.Structure,), {"_fields_": [(field, self._kind(kind)) for field, kind, *_ in fields]}
            )
            for field, _, offset, size in fields:
                place = getattr(made, field)
                assert (place.offset, place.size) == (int(offset), int(size)), f"{name}.{field} lies elsewhere in C"
            self._structs[name] = made
        return self._structs[name]

    def find_struct(self, name: str) -> type[ctypes.Structure] | None:
        """The same, None if there is none."""
        return self.struct(name) if getattr(self._lib, f"{name}_fields", None) is not None else None

    def args(self, name: str, fields: Mapping[str, Value]) -> "tuple[ctypes.Structure, list[Tensor]]":
        """The arguments of operation `name`, and the tensors that they point to: those must outlive them.

        A pointer takes a tensor, an array of ctypes or an address (which its caller keeps), or None. `x_stride` is the
        distance of the rows of `x` unless it is given. What is not named is 0.
        """
        args = self.struct(name)()
        kinds = {field: kind for field, kind, *_ in args._fields_}
        held: list[Tensor] = []
        for field, value in fields.items():
            assert field in kinds, f"{name} has no field {field}: {', '.join(kinds)}"
            if isinstance(value, ctypes.Array):
                setattr(args, field, ctypes.addressof(value))
            elif isinstance(value, int | float | ctypes.Structure):
                setattr(args, field, value)
            elif value is not None:  # a tensor: not asked for by its type, which would import torch
                assert kinds[field] is ctypes.c_void_p, f"{name}.{field} is no pointer"
                held.append(value)
                setattr(args, field, value.data_ptr() or None)
                stride = f"{field}_stride"
                if stride in kinds and stride not in fields and value.dim() > 1:
                    setattr(args, stride, value.stride(0))
        return args, held

    def code(self, enum: str, name: str) -> int:
        """The number of a value of an enum: `code("Activation", "silu")`."""
        return self.enum(enum).index(name)

    def enum(self, name: str) -> tuple[str, ...]:
        """The names of an enum, in lower case and in order."""
        if name not in self._enums:
            self._enums[name] = tuple(part.strip().lower() for part in self._text(f"{name}_names").split(","))
        return self._enums[name]

    def limit(self, name: str) -> int:
        """A bound that the kernels were written for, such as the longest key of `glr` (`MAX_K`)."""
        function = getattr(self._lib, f"{name}_limit")
        function.restype = ctypes.c_int64
        return int(function())

    def _kind(self, text: str) -> Any:
        kind, _, count = text.partition("*")
        found: Any = _KINDS[kind] if kind in _KINDS else self.struct(kind)
        return found * int(count) if count else found

    def _text(self, name: str) -> str:
        function = getattr(self._lib, name)
        function.restype = ctypes.c_char_p
        return str(function().decode())

    def op(self, name: str, args: ctypes.Structure) -> Op:
        """The entry for operation `name`; `args`, of its struct, must outlive it."""
        chunks, run, reads = (getattr(self._lib, f"{name}_{part}", None) for part in ("chunks", "run", "reads"))
        assert chunks and run
        return Op(
            ctypes.cast(chunks, ctypes.c_void_p),
            ctypes.cast(run, ctypes.c_void_p),
            ctypes.addressof(args),
            ctypes.cast(reads, ctypes.c_void_p) if reads else None,
        )

    def tile_bytes(self, layout: int, d_in: int) -> int:
        """Bytes of one tile of a weight (linear/formats.h)."""
        return int(self._lib.weight_tile_bytes(layout, d_in))

    def new_team(self, num_threads: int) -> int:
        return int(self._lib.team_new(num_threads, int(SPIN_SECONDS * 1e9)))

    def free_team(self, handle: int) -> None:
        self._lib.team_free(handle)

    def run(self, team: int, ops: ctypes.Array[Op], step: ctypes.Structure) -> None:
        self._lib.team_run(team, ops, len(ops), ctypes.addressof(step))

    def run_while(self, team: int, ops: ctypes.Array[Op], step: ctypes.Structure, left: ctypes.c_int64) -> None:
        self._lib.team_run_while(team, ops, len(ops), ctypes.addressof(step), ctypes.addressof(left))


class Team:
    """Threads that run lists of operations together, the calling thread among them. Safe to share between engines.

    num_threads: default, the cores this process may use; fewer take part while other programs hold those cores and that
    is faster (turnout.h). torch's threads are left alone.
    """

    def __init__(self, library: Library, num_threads: int | None = None) -> None:
        self.library = library
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self._handle = library.new_team(self.num_threads)
        weakref.finalize(self, _free, library, self._handle, os.getpid())

    def run(self, ops: ctypes.Array[Op], step: ctypes.Structure) -> None:
        """Run a list once, in order. Returns when all of it is done (other Python threads go on meanwhile)."""
        self.library.run(self._handle, ops, step)

    def run_while(self, ops: ctypes.Array[Op], step: ctypes.Structure, left: ctypes.c_int64) -> None:
        """Run a list again and again until `left`, which it counts down itself, is 0."""
        self.library.run_while(self._handle, ops, step, left)

    def run_once(self, name: str, calls: Sequence[Mapping[str, Value]]) -> None:
        """Run one operation over several arguments. It reads nothing from a step: packing weights, probes, choices."""
        made = [self.library.args(name, fields) for fields in calls]
        ops = (Op * len(made))(*(self.library.op(name, args) for args, _ in made))
        self.run(ops, self.library.struct("Step")())


def _free(library: Library, handle: int, process: int) -> None:
    if os.getpid() == process:  # threads do not follow a fork: waiting for them there would have no end
        library.free_team(handle)


@cache
def load(path: Path) -> Library:
    """The library at `path`, once per process."""
    return Library(path)
