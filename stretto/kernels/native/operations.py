"""`Operations`: a list of native operations, with those of the host between them, and how it runs."""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stretto.core.plan import StepPlan
from stretto.kernels.native.library import Op, Team

Host = Callable[[StepPlan], None]
"""An operation that Python computes, for the rows of a plan."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operation: native with its arguments, or one of the host. why: what of it has no native kernel."""

    name: str
    args: ctypes.Structure | None = None
    host: Host | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Compiled:
    spans: Sequence["ctypes.Array[Op] | Host"]
    with_between: ctypes.Array[Op]
    commits: ctypes.Array[Op]


class Operations:
    """calls: what a run does, in order; commits: what advances states over accepted rows; between: what `run_while`
    does at the end of every run, so that the next one can follow. None of them grows after the first run.

    step: the rows of the next run. plan: the same for operations of the host. accepted: what `commit` reads; the step
    lies within it.
    """

    def __init__(self, team: Team) -> None:
        self.team, self.library = team, team.library
        self.accepted: Any = self.library.struct("Commit")()
        self.step: Any = self.accepted.step  # a view: operations of `commit` read what lies around it
        self.plan: StepPlan | None = None
        self.calls: list[Call] = []
        self.commits: list[Call] = []
        self.between: list[Call] = []
        self._compiled: _Compiled | None = None

    @property
    def names(self) -> list[str]:
        """The operations, in order."""
        return [call.name for call in self.calls]

    @property
    def host_operations(self) -> dict[str, str]:
        """The parts that Python computes, and why."""
        return {call.name: call.why for call in self.calls if call.host is not None}

    @property
    def has_run(self) -> bool:
        return self._compiled is not None

    def run(self) -> None:
        """Compute the operations for the rows of `step`, and of `plan` where there are some of the host."""
        for span in self._compile().spans:
            if isinstance(span, ctypes.Array):
                self.team.run(span, self.step)
            else:
                self._run_host(span)

    def run_while(self, left: ctypes.c_int64) -> None:
        """Run and do what lies between two runs, until `left` is 0: one of those operations counts it down. Only a list
        without operations of the host can."""
        assert not self.host_operations
        self.team.run_while(self._compile().with_between, self.step, left)

    def commit(self) -> None:
        """Advance states over the rows that `accepted` names, after `run` and before `step` is filled again."""
        if self.commits:
            self.team.run(self._compile().commits, self.step)

    def profile(self, repeat: int = 20) -> dict[str, float]:
        """Seconds per run of each kind of operation, the largest first: every operation timed by itself.

        The step must be described; what the operations compute is computed again and again.
        """
        spent: dict[str, float] = {}
        singles = [(call.name, call.host, self._array([call])) for call in self.calls]
        for _ in range(repeat):
            for name, host, op in singles:
                started = time.perf_counter()
                self.team.run(op, self.step) if host is None else self._run_host(host)
                spent[name] = spent.get(name, 0.0) + (time.perf_counter() - started) / repeat
        return dict(sorted(spent.items(), key=lambda item: -item[1]))

    def _run_host(self, host: Host) -> None:
        assert self.plan is not None, "operations of the host are run with a plan"
        host(self.plan)

    def _compile(self) -> _Compiled:
        if self._compiled is None:
            spans: list[ctypes.Array[Op] | Host] = []
            for host, calls in groupby(self.calls, key=lambda call: call.host):
                spans.append(self._array(list(calls)) if host is None else host)
            between = [] if self.host_operations else self.calls + self.between
            self._compiled = _Compiled(spans, self._array(between), self._array(self.commits))
        return self._compiled

    def _array(self, calls: Sequence[Call]) -> ctypes.Array[Op]:
        native = [(call.name, call.args) for call in calls if call.args is not None]
        return (Op * len(native))(*(self.library.op(name, args) for name, args in native))
