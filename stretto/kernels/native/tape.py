"""Recording a forward pass: what Python runs once becomes a list of native operations over fixed buffers.

    with tape.recording():
        logits = model(plan)          # every operation adds itself to the tape instead of computing
    tape.run()                        # computes, for the rows that `tape.step` describes

Buffers have room for `max_rows` rows; how many are in use is read from the step when an operation runs, so one tape
serves decoding, verification and prefill. While a tape is recorded, a torch operation that is not a view is an error:
it would be missing from every later run.
"""

import ctypes
import mmap
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stretto.core.errors import UserError
from stretto.kernels.native.library import Op, Pool, Value

_V = TypeVar("_V")
ALIGN = 64
LANES = 16  # fp32 numbers of a vector


ALL_ROWS, OUT_ROWS = "all_rows", "out_rows"
"""Leading dimensions that are known when a step runs: rows of activations, and rows that the head needs."""


class Tape:
    """A list of operations with the buffers they work on.

    max_rows: room for rows of activations; max_out: for rows that the head needs; context: positions a row may have.
    coarse_prompts: sequences that are not in step form are multiplied with 8-bit activations instead of 16-bit ones,
    and attend in 16-bit integers instead of fp32.
    step: the rows of the next run.

    Operations run in the order of recording, so the memory of a buffer that nobody holds any more goes to the next one:
    a model of thirty layers needs the buffers of one.
    """

    def __init__(self, pool: Pool, *, max_rows: int, max_out: int, context: int, coarse_prompts: bool = False) -> None:
        self.pool, self.context, self.coarse_prompts = pool, context, coarse_prompts
        self.library = pool.library
        self.accepted: Any = self.library.struct("Commit")()
        self.step: Any = self.accepted.step  # a view: operations of `commit` read what lies around it
        # whole blocks of the fixed-point form, which holds eight rows
        self._capacity = {ALL_ROWS: -(-max_rows // 8) * 8, OUT_ROWS: -(-max_out // 8) * 8}
        self._buffers: dict[int, _Buffer] = {}  # by the start of their memory
        self._free: dict[int, list[mmap.mmap]] = {}  # by size
        self._memory: list[mmap.mmap] = []
        self._constants: dict[Hashable, Any] = {}
        self._calls: list[tuple[str, ctypes.Structure]] = []
        self._commits: list[tuple[str, ctypes.Structure]] = []
        self._between: list[tuple[str, ctypes.Structure]] = []
        self._kept: list[Tensor] = []
        self._ops: _Lists | None = None
        self._guard = _NothingVanishes()

    # -- buffers ---------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Rows of activations that a buffer holds."""
        return self._capacity[ALL_ROWS]

    def empty(self, rows: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[room, *shape]: a buffer for `ALL_ROWS` or `OUT_ROWS` rows, aligned to cache lines."""
        whole = (self._capacity[rows], *shape)
        size = -(-int(torch.Size(whole).numel()) * dtype.itemsize // ALIGN) * ALIGN
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if memory not in self._memory:
            self._memory.append(memory)
        lease = (ctypes.c_char * size).from_buffer(memory)  # lives as long as the tensor and its views
        start = ctypes.addressof(lease)
        weakref.finalize(lease, self._release, start, size, memory)
        self._buffers[start] = _Buffer(rows)
        count = int(torch.Size(whole).numel())
        with self.outside():
            return torch.frombuffer(lease, dtype=dtype, count=count).view(whole)

    def like(self, x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[room, *shape]: a buffer for the rows that `x` holds."""
        return self.empty(self._buffer(x).rows, *shape, dtype=dtype)

    def kind(self, x: Tensor) -> str:
        """Which rows a recorded tensor holds: `ALL_ROWS` or `OUT_ROWS`."""
        return self._buffer(x).rows

    def rows(self, x: Tensor) -> ctypes.Structure:
        """The same for an argument struct."""
        return self.library.struct("Rows")(self.library.code("RowKind", self.kind(x)))

    def derived(self, x: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A buffer computed from `x`, made once while `x` lives: buffers are written once."""
        known = self._buffer(x).derived
        if key not in known:
            known[key] = make()
        return known[key]

    def constant(self, key: Hashable, make: Callable[[], _V]) -> _V:
        """A value that every run shares, computed once by torch while recording."""
        if key not in self._constants:
            with self.outside():
                self._constants[key] = make()
        return self._constants[key]  # type: ignore[no-any-return]

    def padded(self, rows: Tensor) -> Tensor:
        """[R, C rounded up to vectors] fp32: a copy of the parameters [R, C], zeros beyond."""
        copy = aligned((len(rows), -(-rows.shape[1] // LANES) * LANES), torch.float32)
        if not rows.is_meta:  # a pass that is only recorded to see whether it can be has no numbers
            with self.outside():
                copy[:, : rows.shape[1]] = rows
        return copy

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Torch computes inside, for the recording itself and not for the model."""
        allowed, self._guard.allows_all = self._guard.allows_all, True
        try:
            yield
        finally:
            self._guard.allows_all = allowed

    def _buffer(self, x: Tensor) -> "_Buffer":
        buffer = self._buffers.get(x.untyped_storage().data_ptr())
        assert buffer is not None, "a tensor from outside the tape"
        return buffer

    def _release(self, start: int, size: int, memory: mmap.mmap) -> None:
        del self._buffers[start]
        self._free[size].append(memory)

    # -- recording and running -------------------------------------------------------------------------------------

    def emit(self, name: str, **fields: Value) -> None:
        """Add operation `name`; see `Library.args` for what its fields take.

        Tensors are buffers of this tape, whose memory is used again once nobody holds them, or constants and pools,
        which the tape keeps.
        """
        self._calls.append((name, self._args(name, fields)))

    def emit_commit(self, name: str, **fields: Value) -> None:
        """Add an operation that advances states over accepted rows. It reads copies of their inputs, and keeps them:
        the buffers they came in hold something else by then."""
        self._commits.append((name, self._args(name, fields, keeps_buffers=True)))

    def emit_between(self, name: str) -> Any:
        """Add an operation that `run_while` does at the end of every run, so that the next one can follow. Its
        arguments, to be filled before every run."""
        args = self._args(name, {})
        self._between.append((name, args))
        return args

    def _args(self, name: str, fields: Mapping[str, Value], *, keeps_buffers: bool = False) -> ctypes.Structure:
        assert self._ops is None, "the tape has run: it cannot grow"
        args, held = self.library.args(name, fields)
        self._kept += [x for x in held if keeps_buffers or x.untyped_storage().data_ptr() not in self._buffers]
        return args

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Operations called inside add themselves to this tape. Raises NotRecordable at one that cannot."""
        token = _current.set(self)
        try:
            with torch.inference_mode(), self._guard:
                yield
        finally:
            _current.reset(token)

    def run(self) -> None:
        """Compute the recorded operations for the rows of `step`."""
        self.pool.run(self._compiled().calls, self.step)

    def run_while(self, left: ctypes.c_int64) -> None:
        """Run and do what lies between two runs, until `left` is 0: one of those operations counts it down."""
        self.pool.run_while(self._compiled().with_between, self.step, left)

    def commit(self) -> None:
        """Advance states over the rows that `accepted` names, after `run` and before `step` is filled again."""
        if self._commits:
            self.pool.run(self._compiled().commits, self.step)

    def profile(self, repeat: int = 20) -> dict[str, float]:
        """Seconds per run of each kind of operation, the largest first: every operation timed by itself.

        The step must be described; what the operations compute is computed again and again.
        """
        spent: dict[str, float] = {}
        singles = [(name, self._array([(name, args)])) for name, args in self._calls]
        for _ in range(repeat):
            for name, op in singles:
                started = time.perf_counter()
                self.pool.run(op, self.step)
                spent[name] = spent.get(name, 0.0) + (time.perf_counter() - started) / repeat
        return dict(sorted(spent.items(), key=lambda item: -item[1]))

    def _compiled(self) -> "_Lists":
        if self._ops is None:
            self._ops = _Lists(*map(self._array, (self._calls, self._calls + self._between, self._commits)))
        return self._ops

    def _array(self, calls: Sequence[tuple[str, ctypes.Structure]]) -> ctypes.Array[Op]:
        return (Op * len(calls))(*(self.library.op(name, args) for name, args in calls))

    @property
    def names(self) -> list[str]:
        """The operations, in order."""
        return [name for name, _ in self._calls]


@dataclass(frozen=True, slots=True)
class _Lists:
    calls: ctypes.Array[Op]
    with_between: ctypes.Array[Op]
    commits: ctypes.Array[Op]


@dataclass(slots=True)
class _Buffer:
    rows: str
    derived: dict[Hashable, Tensor] = field(default_factory=dict)


def aligned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for `shape` that starts at a page; it is taken when it is first written, and reads as zeros until then."""
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize).view(tuple(shape))


_current: ContextVar[Tape | None] = ContextVar("stretto_tape", default=None)


def current() -> Tape:
    """The tape that is being recorded; only a backend that `why_not` let through asks."""
    tape = _current.get()
    assert tape is not None
    return tape


def why_not_here() -> str | None:
    """Why a native backend cannot run now, None if a tape is being recorded."""
    return None if _current.get() is not None else "no tape is being recorded"


def beyond(limit: str, count: int, what: str) -> str | None:
    """Why a native backend cannot run `count` of something, None if the kernels were written for so many."""
    most = current().library.limit(limit)
    return f"{count} {what}; at most {most} are computed natively" if count > most else None


class _NothingVanishes(TorchDispatchMode):
    """Refuses every torch operation that computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allows_all = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """A tape is never recorded inside torch.compile, and asking torch to see to that imports its compiler: a second
        of every start."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_about_dtypes = func is torch.ops.aten.promote_types.default
        if not (self.allows_all or func.is_view or is_about_dtypes):
            raise NotRecordable(func.__name__)
        return func(*args, **(kwargs or {}))


class NotRecordable(UserError):
    """A model computes something that has no native kernel; it runs through torch."""

    def __init__(self, operation: str) -> None:
        super().__init__("this model cannot be recorded", why=f"it computes {operation}, which has no native kernel")
