"""What a scheduler was told and what it decided, call by call: `planner/simulator.py` replays it.

An event is a dictionary of plain values, ready for JSON: `kind` names the method, the other keys are its arguments;
those of `schedule` hold the plan too.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from stretto.core.policy import Job, Record
from stretto.engine.scheduler import Limits, Memory, Plan, Policies, Scheduler

Event = dict[str, Any]
ARRIVAL = ("rid", "arrived", "prompt", "limit", "priority", "tenant", "space", "fresh")  # fields of a job that is new


def plan_event(plan: Plan) -> Event:
    """A plan in plain values."""
    return {
        "shares": [[s.job.rid, s.num_rows, s.is_decode, s.is_last] for s in plan.shares],
        "budgets": {str(rid): n for rid, n in plan.budgets.items()},
        "num_steps": plan.num_steps,
        "preempted": [job.rid for job in plan.preempted],
    }


class TracedScheduler(Scheduler):
    """Hands every call to `write` as an event, after it was made."""

    def __init__(self, memory: Memory, policies: Policies, limits: Limits, write: Callable[[Event], None]) -> None:
        super().__init__(memory, policies, limits)
        self._write, self._is_planning = write, False

    def add(self, job: Job) -> None:
        super().add(job)
        tokens = None if job.tokens is None else list(job.tokens)
        self._write({"kind": "add", **{name: getattr(job, name) for name in ARRIVAL}, "tokens": tokens})

    def remove(self, job: Job, *, keep: bool = True, ended: bool = False) -> None:
        super().remove(job, keep=keep, ended=ended)
        self._write({"kind": "remove", "rid": job.rid, "keep": keep, "ended": ended})

    def preempt(self, job: Job, *, keep: bool = True) -> None:
        super().preempt(job, keep=keep)
        if not self._is_planning:  # what a plan preempts is part of it
            self._write({"kind": "preempt", "rid": job.rid, "keep": keep})

    def schedule(self, now: float, patience: float = 0.0) -> Plan:
        flags = [[job.rid, job.drafts, job.ahead, job.acceptance] for job in (*self.running, *self.waiting)]
        self._is_planning = True
        try:
            plan = super().schedule(now, patience)
        finally:
            self._is_planning = False
        self._write({"kind": "schedule", "now": now, "patience": patience, "flags": flags, **plan_event(plan)})
        return plan

    def grant(self, job: Job, num_rows: int) -> bool:
        granted = super().grant(job, num_rows)
        self._write({"kind": "grant", "rid": job.rid, "num_rows": num_rows, "granted": granted})
        return granted

    def advance(self, job: Job, num_rows: int, emitted: int) -> None:
        super().advance(job, num_rows, emitted)
        tokens = None if job.tokens is None else list(job.tokens[len(job.tokens) - emitted :])
        self._write({"kind": "advance", "rid": job.rid, "num_rows": num_rows, "emitted": emitted, "tokens": tokens})

    def learn(self, record: Record) -> None:
        super().learn(record)
        self._write({"kind": "learn", **asdict(record)})


def make_scheduler(
    memory: Memory, policies: Policies, limits: Limits, write: Callable[[Event], None] | None
) -> Scheduler:
    """A scheduler, traced if somebody wants to read its calls."""
    if write is None:
        return Scheduler(memory, policies, limits)
    return TracedScheduler(memory, policies, limits, write)
