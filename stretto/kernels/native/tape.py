"""Recording a forward pass: what Python runs once becomes a list of native operations over fixed buffers.

    with tape.recording():
        logits = model(plan)          # every operation adds itself to the tape instead of computing
    tape.run()                        # computes, for the rows that `tape.step` describes

Buffers (`buffers.py`) have room for `max_rows` rows; how many are in use is read from the step when an operation runs
(`operations.py`), so one tape serves decoding, verification and prefill.

While a tape is recorded, torch may look at buffers (views) and compute constants: what depends neither on rows nor on a
cache is computed once, now. Operations of `vocabulary` are recorded. Any other torch operation would be missing from
every later run and raises NotRecordable.
A part of a model where that happens becomes one *host operation* (`part`): Python computes it in every run, for the
rows of the step, between two spans of native operations.
"""

import ctypes
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from stretto.core.plan import StepPlan
from stretto.kernels.native.buffers import ALL_ROWS, OUT_ROWS, Buffers, padded
from stretto.kernels.native.guard import Guard, NotRecordable
from stretto.kernels.native.library import Team, Value
from stretto.kernels.native.operations import Call, Host, Operations
from stretto.kernels.native.program import Constant, Program, Regions, Scratch
from stretto.kernels.native.vocabulary import record

_V = TypeVar("_V")
Compute = Callable[[Tensor, StepPlan], Tensor]


class Tape(Operations):
    """Operations that are recorded, with the buffers that they work on.

    max_rows: room for rows of activations; max_out: for rows that the head needs; context: positions a row may have.
    coarse_prompts: sequences that are not in step form are multiplied with 8-bit activations instead of 16-bit ones,
    and attend in 16-bit integers instead of fp32. live: what changes from step to step besides buffers, the pools.
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
        super().__init__(team)
        self.context, self.coarse_prompts = context, coarse_prompts
        self.buffers = Buffers(max_rows, max_out)
        self._constants: dict[Hashable, Any] = {}
        self.kept: list[Tensor] = []
        self._guard = Guard(self.holds, partial(record, self), {x.untyped_storage().data_ptr() for x in live})

    # -- rows and constants ----------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Rows of activations that a buffer holds."""
        return self.buffers.capacity[ALL_ROWS]

    def empty(self, rows: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[room, *shape]: a buffer for `ALL_ROWS` or `OUT_ROWS` rows, aligned to cache lines."""
        with self.outside():
            return self.buffers.empty(rows, *shape, dtype=dtype)

    def like(self, x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[room, *shape]: a buffer for the rows that `x` holds."""
        return self.empty(self.kind(x), *shape, dtype=dtype)

    def holds(self, x: Tensor) -> bool:
        """Whether `x` is a buffer of this tape, or a view of one."""
        return self.buffers.holds(x)

    def kind(self, x: Tensor) -> str:
        """Which rows a recorded tensor holds: `ALL_ROWS` or `OUT_ROWS`."""
        return self.buffers.kind(x)

    def rows(self, x: Tensor) -> ctypes.Structure:
        """The same for an argument struct."""
        return self.library.struct("Rows")(self.library.code("RowKind", self.kind(x)))

    def derived(self, x: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A buffer computed from `x`, made once while `x` lives: buffers are written once."""
        return self.buffers.derived(x, key, make)

    def padded(self, rows: Tensor) -> Tensor:
        """[R, C rounded up to vectors] fp32: a copy of the parameters [R, C], zeros beyond."""
        with self.outside():
            return padded(rows)

    def constant(self, key: Hashable, make: Callable[[], _V]) -> _V:
        """A value that every run shares, computed once by torch while recording."""
        if key not in self._constants:
            with self.outside():
                self._constants[key] = make()
        return self._constants[key]  # type: ignore[no-any-return]

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Torch computes inside, for the recording itself and not for the model."""
        allowed, self._guard.allows_all = self._guard.allows_all, True
        try:
            yield
        finally:
            self._guard.allows_all = allowed

    # -- recording -------------------------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Operations called inside add themselves to this tape. Raises NotRecordable at one that cannot."""
        token = _current.set(self)
        try:
            with torch.inference_mode(), self._guard:
                yield
        finally:
            _current.reset(token)

    def emit(self, name: str, **fields: Value) -> None:
        """Add operation `name`; see `Library.args` for what its fields take.

        Tensors are buffers of this tape, whose memory is used again once nobody holds them, or constants and pools,
        which the tape keeps.
        """
        self.calls.append(Call(name, self._args(name, fields)))

    def emit_host(self, name: str, x: Tensor, width: int, compute: Compute, why: str) -> Tensor:
        """Add a host operation, `compute(rows of x, plan)` -> [rows, width], and its result [room, width]. why: what of
        it has no native kernel."""
        y = self.like(x, width)
        with self.outside():
            source, target = self.buffers.borrowed(x), self.buffers.borrowed(y)
        run = _host_call(source, target, compute, of_wanted=self.kind(x) == OUT_ROWS)
        self.calls.append(Call(name, host=run, why=why))
        return y

    def part(self, name: str, x: Tensor, plan: StepPlan, compute: Compute) -> Tensor:
        """`compute(x, plan)`, recorded operation by operation, or as one host operation where that is not possible."""
        recorded: list[list[Any]] = [self.calls, self.commits, self.kept]
        lengths = [len(part) for part in recorded]
        try:
            return compute(x, plan)
        except NotRecordable as problem:
            why = str(problem.why)
        for part, length in zip(recorded, lengths, strict=True):
            del part[length:]
        return self.emit_host(name, x, x.shape[1], compute, why)

    def emit_commit(self, name: str, **fields: Value) -> None:
        """Add an operation that advances states over accepted rows. It reads copies of their inputs, and keeps them:
        the buffers they came in hold something else by then."""
        self.commits.append(Call(name, self._args(name, fields, keeps_buffers=True)))

    def emit_between(self, name: str) -> Any:
        """Add an operation between two runs (`run_while`). Its arguments, to be filled before every run."""
        args = self._args(name, {})
        self.between.append(Call(name, args))
        return args

    def _args(self, name: str, fields: Mapping[str, Value], *, keeps_buffers: bool = False) -> ctypes.Structure:
        assert not self.has_run, "the tape has run: it cannot grow"
        args, held = self.library.args(name, fields)
        self.kept += [x for x in held if keeps_buffers or not self.holds(x)]
        return args


def as_program(tape: Tape, given: Regions, outputs: Mapping[str, Tensor]) -> Program:
    """What was recorded, as a program. given: the memory of others, to which that of this tape is added; outputs:
    buffers that are read after a run. To be asked before the first run: memory that holds zeros now (partial results)
    is not kept as numbers."""
    assert not tape.has_run
    for memory in tape.buffers.memory:
        given.add(ctypes.addressof(ctypes.c_char.from_buffer(memory)), Scratch(len(memory)))
    for start, end in _extents(x for x in tape.kept if x.numel() and given.find(x.data_ptr()) is None):
        data = ctypes.string_at(start, end - start)
        given.add(start, Constant(data) if data.strip(b"\0") else Scratch(len(data)))
    return given.program(tape, {name: x.data_ptr() for name, x in outputs.items()})


def _extents(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """The memory of these tensors, as ranges that do not overlap: views of one storage that touch become one."""
    spans = [(x.untyped_storage().data_ptr(), x.data_ptr(), x.data_ptr() + _nbytes(x)) for x in tensors]
    found: list[tuple[int, int]] = []
    last = -1
    for storage, start, end in sorted(spans):
        if found and storage == last and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
        last = storage
    return found


def _nbytes(x: Tensor) -> int:
    """From its first number to its last."""
    return (1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))) * x.itemsize


def _host_call(source: Tensor, target: Tensor, compute: Compute, *, of_wanted: bool) -> Host:
    """`target = compute(source, plan)` for the rows of the plan, or for those that it wants scores of."""

    def run(plan: StepPlan) -> None:
        n = len(plan.wanted) if of_wanted else plan.seqs.num_rows
        with torch.inference_mode():
            if n:
                target[:n] = compute(source[:n], plan)

    return run


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
