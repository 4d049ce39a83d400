"""Recording a forward pass: what Python runs once becomes a list of native operations over fixed buffers.

    with tape.recording():
        logits = model(plan)          # every operation adds itself to the tape instead of computing
    tape.run()                        # computes, for the rows that `tape.step` describes

Buffers have room for `max_rows` rows; how many are in use is read from the step when an operation runs, so one tape
serves decoding, verification and prefill.

While a tape is recorded, torch may look at buffers (views) and compute constants: what depends neither on rows nor on a
cache is computed once, now. Operations of `vocabulary` are recorded. Any other torch operation would be missing from
every later run and raises NotRecordable.
A part of a model where that happens becomes one *host operation* (`part`): Python computes it in every run, for the
rows of the step, between two spans of native operations.
"""

import ctypes
import mmap
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from stretto.core.plan import StepPlan
from stretto.kernels.native.guard import Guard, NotRecordable
from stretto.kernels.native.library import Op, Team, Value
from stretto.kernels.native.vocabulary import record

Compute = Callable[[Tensor, StepPlan], Tensor]
_V = TypeVar("_V")
ALIGN = 64
LANES = 16  # fp32 numbers of a vector


ALL_ROWS, OUT_ROWS = "all_rows", "out_rows"
"""Leading dimensions that are known when a step runs: rows of activations, and rows that the head needs."""


class Tape:
    """A list of operations with the buffers they work on.

    max_rows: room for rows of activations; max_out: for rows that the head needs; context: positions a row may have.
    coarse_prompts: sequences that are not in step form are multiplied with 8-bit activations instead of 16-bit ones,
    and attend in 16-bit integers instead of fp32. live: what changes from step to step besides buffers, the pools.
    step: the rows of the next run. plan: the same for host operations.

    Operations run in the order of recording, so the memory of a buffer that nobody holds any more goes to the next one:
    a model of thirty layers needs the buffers of one.
    """

    def __init__(
        self,
        team: Team,
        *,
        max_rows: int,
        max_out: int,
        context: int,
        coarse_prompts: bool = False,
        live: Iterable[Tensor] = (),
    ) -> None:
        self.team, self.context, self.coarse_prompts = team, context, coarse_prompts
        self.library = team.library
        self.accepted: Any = self.library.struct("Commit")()
        self.step: Any = self.accepted.step  # a view: operations of `commit` read what lies around it
        self.plan: StepPlan | None = None
        # whole blocks of the fixed-point form, which holds eight rows
        self._capacity = {ALL_ROWS: -(-max_rows // 8) * 8, OUT_ROWS: -(-max_out // 8) * 8}
        self._buffers: dict[int, _Buffer] = {}  # by the start of their memory
        self._free: dict[int, list[mmap.mmap]] = {}  # by size
        self._memory: list[mmap.mmap] = []
        self._constants: dict[Hashable, Any] = {}
        self._calls: list[_Call] = []
        self._commits: list[_Call] = []
        self._between: list[_Call] = []
        self._kept: list[Tensor] = []
        self._ops: _Lists | None = None
        self._guard = Guard(self.holds, partial(record, self), {x.untyped_storage().data_ptr() for x in live})

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
        self._buffers[start] = _Buffer(rows, memory)
        count = int(torch.Size(whole).numel())
        with self.outside():
            return torch.frombuffer(lease, dtype=dtype, count=count).view(whole)

    def like(self, x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[room, *shape]: a buffer for the rows that `x` holds."""
        return self.empty(self._buffer(x).rows, *shape, dtype=dtype)

    def holds(self, x: Tensor) -> bool:
        """Whether `x` is a buffer of this tape, or a view of one."""
        return x.untyped_storage().data_ptr() in self._buffers

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
        if buffer is None:
            raise NotRecordable("computes with what are no rows of the step")
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
        self._calls.append(_Call(name, self._args(name, fields)))

    def emit_host(self, name: str, x: Tensor, width: int, compute: Compute, why: str) -> Tensor:
        """Add a host operation, `compute(rows of x, plan)` -> [rows, width], and its result [room, width]. why: what of
        it has no native kernel."""
        y = self.like(x, width)
        kind, source, target = self.kind(x), self._borrowed(x), self._borrowed(y)

        def run() -> None:
            assert self.plan is not None, "a tape with host operations is run with a plan"
            n = len(self.plan.wanted) if kind == OUT_ROWS else self.plan.seqs.num_rows
            with torch.inference_mode():
                if n:
                    target[:n] = compute(source[:n], self.plan)

        self._calls.append(_Call(name, host=run, why=why))
        return y

    @property
    def host_operations(self) -> dict[str, str]:
        """The parts that Python computes, and why."""
        return {call.name: call.why for call in self._calls if call.host is not None}

    def part(self, name: str, x: Tensor, plan: StepPlan, compute: Compute) -> Tensor:
        """`compute(x, plan)`, recorded operation by operation, or as one host operation where that is not possible."""
        mark = len(self._calls), len(self._commits), len(self._kept)
        try:
            return compute(x, plan)
        except NotRecordable as problem:
            why = str(problem.why)
        for recorded, length in zip((self._calls, self._commits, self._kept), mark, strict=True):
            del recorded[length:]  # type: ignore[attr-defined]
        return self.emit_host(name, x, x.shape[1], compute, why)

    def _borrowed(self, x: Tensor) -> Tensor:
        """`x` without its claim to the memory: whoever reads it later knows that it is his turn."""
        buffer = self._buffer(x)
        with self.outside():
            memory = torch.frombuffer(buffer.memory, dtype=x.dtype, count=len(buffer.memory) // x.itemsize)
            return memory.as_strided(x.shape, x.stride(), x.storage_offset())

    def emit_commit(self, name: str, **fields: Value) -> None:
        """Add an operation that advances states over accepted rows. It reads copies of their inputs, and keeps them:
        the buffers they came in hold something else by then."""
        self._commits.append(_Call(name, self._args(name, fields, keeps_buffers=True)))

    def emit_between(self, name: str) -> Any:
        """Add an operation that `run_while` does at the end of every run, so that the next one can follow. Its
        arguments, to be filled before every run."""
        args = self._args(name, {})
        self._between.append(_Call(name, args))
        return args

    def _args(self, name: str, fields: Mapping[str, Value], *, keeps_buffers: bool = False) -> ctypes.Structure:
        assert self._ops is None, "the tape has run: it cannot grow"
        args, held = self.library.args(name, fields)
        self._kept += [x for x in held if keeps_buffers or not self.holds(x)]
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
        """Compute the recorded operations for the rows of `step`, and of `plan` where there are host operations."""
        for span in self._compiled().spans:
            if isinstance(span, ctypes.Array):
                self.team.run(span, self.step)
            else:
                span()

    def run_while(self, left: ctypes.c_int64) -> None:
        """Run and do what lies between two runs, until `left` is 0: one of those operations counts it down. Only a tape
        without host operations can."""
        assert not self.host_operations
        self.team.run_while(self._compiled().with_between, self.step, left)

    def commit(self) -> None:
        """Advance states over the rows that `accepted` names, after `run` and before `step` is filled again."""
        if self._commits:
            self.team.run(self._compiled().commits, self.step)

    def profile(self, repeat: int = 20) -> dict[str, float]:
        """Seconds per run of each kind of operation, the largest first: every operation timed by itself.

        The step must be described; what the operations compute is computed again and again.
        """
        spent: dict[str, float] = {}
        singles = [(call.name, call.host, self._array([call])) for call in self._calls]
        for _ in range(repeat):
            for name, host, op in singles:
                started = time.perf_counter()
                self.team.run(op, self.step) if host is None else host()
                spent[name] = spent.get(name, 0.0) + (time.perf_counter() - started) / repeat
        return dict(sorted(spent.items(), key=lambda item: -item[1]))

    def _compiled(self) -> "_Lists":
        if self._ops is None:
            spans: list[ctypes.Array[Op] | Callable[[], None]] = []
            for host, calls in groupby(self._calls, key=lambda call: call.host):
                spans.append(self._array(list(calls)) if host is None else host)
            between = [] if self.host_operations else self._calls + self._between
            self._ops = _Lists(spans, self._array(between), self._array(self._commits))
        return self._ops

    def _array(self, calls: Sequence["_Call"]) -> ctypes.Array[Op]:
        native = [(call.name, call.args) for call in calls if call.args is not None]
        return (Op * len(native))(*(self.library.op(name, args) for name, args in native))

    @property
    def names(self) -> list[str]:
        """The operations, in order."""
        return [call.name for call in self._calls]


@dataclass(frozen=True, slots=True)
class _Call:
    """An operation: native with its arguments, or one of the host."""

    name: str
    args: ctypes.Structure | None = None
    host: Callable[[], None] | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Lists:
    spans: Sequence["ctypes.Array[Op] | Callable[[], None]"]
    with_between: ctypes.Array[Op]
    commits: ctypes.Array[Op]


@dataclass(slots=True)
class _Buffer:
    rows: str
    memory: mmap.mmap
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


def part(name: str, x: Tensor, plan: StepPlan, compute: Compute) -> Tensor:
    """`compute(x, plan)`: at once, or onto the tape that is being recorded (`Tape.part`). x: [rows, width]; the result
    has its shape. name: where in the model this is."""
    tape = _current.get()
    return compute(x, plan) if tape is None else tape.part(name, x, plan, compute)
