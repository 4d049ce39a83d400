"""The compiled library through ctypes: operations by name, and pools of threads that run lists of them."""

import ctypes
import os
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from stretto.core.errors import RunError

SPIN_SECONDS = 200e-6  # how long idle threads watch for work before they sleep: the pause between two steps


class Op(ctypes.Structure):
    """One entry of a list: functions and their arguments (`Op` of src/op.h)."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("chunks", "run", "args", "reads")]


class Step(ctypes.Structure):
    """The rows of one step (`Step` of src/op.h, which says what they are)."""

    _fields_ = [
        ("num_rows", ctypes.c_int32),
        ("num_out", ctypes.c_int32),
        ("num_seqs", ctypes.c_int32),
        ("num_step_seqs", ctypes.c_int32),
        ("tokens", ctypes.c_void_p),
        ("out_rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("seq_ids", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("contexts", ctypes.c_void_p),
        ("num_definite", ctypes.c_void_p),
        ("parents", ctypes.c_void_p),
        ("slot_mapping", ctypes.c_void_p),
        ("block_table", ctypes.c_void_p),
        ("block_width", ctypes.c_int64),
        ("state_source", ctypes.c_void_p),
        ("state_destination", ctypes.c_void_p),
    ]


class Commit(ctypes.Structure):
    """A step that has run, and which of its provisional rows are kept (`Commit` of src/commit.h)."""

    _fields_ = [("step", Step), ("num_accepted", ctypes.c_void_p), ("accepted_rows", ctypes.c_void_p)]


class Library:
    """A loaded library. level: the instruction-set level it was compiled for.

    Raises RunError if it cannot be loaded: its file is damaged, or nothing may be executed where the cache is.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._lib = ctypes.CDLL(str(path))
        except OSError as problem:
            raise RunError(
                "the native kernels cannot be loaded", why=str(problem), try_=f"remove {path.parent}, or STRETTO_CACHE"
            ) from problem
        self._lib.level.restype = ctypes.c_char_p
        self.level: str = self._lib.level().decode()
        for name in ("pool_new", "weight_tile_bytes", "step_size", "commit_size"):
            getattr(self._lib, name).restype = ctypes.c_int64
        self._lib.pool_new.argtypes = [ctypes.c_int32, ctypes.c_int64]
        self._lib.pool_free.argtypes = [ctypes.c_int64]
        self._lib.pool_run.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._lib.pool_run_while.argtypes = [*self._lib.pool_run.argtypes, ctypes.c_void_p]
        assert self._lib.step_size() == ctypes.sizeof(Step), "Step differs between Python and C"
        assert self._lib.commit_size() == ctypes.sizeof(Commit), "Commit differs between Python and C"
        self._checked: set[str] = set()

    def op(self, name: str, args: ctypes.Structure) -> Op:
        """The entry for operation `name`; `args` must outlive it."""
        if name not in self._checked:
            size = getattr(self._lib, f"{name}_args_size")
            size.restype = ctypes.c_int64
            assert size() == ctypes.sizeof(args), f"the arguments of {name} differ between Python and C"
            self._checked.add(name)
        chunks, run, reads = (getattr(self._lib, f"{name}_{part}", None) for part in ("chunks", "run", "reads"))
        assert chunks and run
        return Op(
            ctypes.cast(chunks, ctypes.c_void_p),
            ctypes.cast(run, ctypes.c_void_p),
            ctypes.addressof(args),
            ctypes.cast(reads, ctypes.c_void_p) if reads else None,
        )

    def tile_bytes(self, layout: int, d_in: int) -> int:
        """Bytes of one tile of a weight (src/formats.h)."""
        return int(self._lib.weight_tile_bytes(layout, d_in))

    def new_pool(self, num_threads: int) -> int:
        return int(self._lib.pool_new(num_threads, int(SPIN_SECONDS * 1e9)))

    def free_pool(self, handle: int) -> None:
        self._lib.pool_free(handle)

    def run(self, pool: int, ops: ctypes.Array[Op], step: Step) -> None:
        self._lib.pool_run(pool, ops, len(ops), ctypes.addressof(step))

    def run_while(self, pool: int, ops: ctypes.Array[Op], step: Step, left: ctypes.c_int64) -> None:
        self._lib.pool_run_while(pool, ops, len(ops), ctypes.addressof(step), ctypes.addressof(left))


class Pool:
    """Threads that run lists of operations together, the calling thread among them. Safe to share between engines.

    num_threads: default, the cores this process may use; fewer take part while other programs hold those cores and that
    is faster (src/turnout.h). torch's threads are left alone.
    """

    def __init__(self, library: Library, num_threads: int | None = None) -> None:
        self.library = library
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self._handle = library.new_pool(self.num_threads)
        weakref.finalize(self, _free, library, self._handle, os.getpid())

    def run(self, ops: ctypes.Array[Op], step: Step) -> None:
        """Run a list once, in order. Returns when all of it is done (other Python threads go on meanwhile)."""
        self.library.run(self._handle, ops, step)

    def run_while(self, ops: ctypes.Array[Op], step: Step, left: ctypes.c_int64) -> None:
        """Run a list again and again until `left`, which it counts down itself, is 0."""
        self.library.run_while(self._handle, ops, step, left)

    def run_once(self, calls: Sequence[tuple[str, ctypes.Structure]]) -> None:
        """Run operations that read nothing from a step: packing weights, probes."""
        ops = (Op * len(calls))(*(self.library.op(name, args) for name, args in calls))
        self.run(ops, Step())


def _free(library: Library, handle: int, process: int) -> None:
    if os.getpid() == process:  # threads do not follow a fork: waiting for them there would have no end
        library.free_pool(handle)


@cache
def load(path: Path) -> Library:
    """The library at `path`, once per process."""
    return Library(path)
