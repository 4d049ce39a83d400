"""Who runs in the next step, with how many rows, how many drafts, how far ahead. Integers only; no torch.

One rule, no phases: a job needs as many rows as it has tokens that are not in the cache. Decodes (need 1) come first,
then prompts that have begun, then admissions, each in the order of the policy. When pages run out the policy's victim
goes back to the queue: its tokens stay, its cache is left to the prefix cache. A prompt waits while a running one is
about to compute much of it. Drafts use what rows are left, and progress never depends on them. Where all decode plainly
and nobody has to be asked in between, several steps are planned as one.

The engine runs the scheduler over its cache, the simulator (`planner/simulator.py`) over integers with a clock of its
own: the same code, the same decisions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stretto.core.policy import (
    ChunkPolicy,
    DraftPolicy,
    EvictPolicy,
    Job,
    LengthPolicy,
    OrderPolicy,
    Record,
    VictimPolicy,
)
from stretto.core.tree import MAX_TREE_ROWS
from stretto.engine.policies.chunk.aligned import Aligned
from stretto.engine.policies.length.limit import Limit
from stretto.engine.policies.order.fcfs import FCFS
from stretto.engine.policies.victim.youngest import Youngest

MAX_AHEAD = 16  # plain steps in a row
MAX_HELD = 32  # prompts that wait for a running one while others pass them


class Memory(Protocol):
    """What the scheduler asks of the cache."""

    def admit(self, rid: int, tokens: Sequence[int] | None = None, space: str = "", *, fresh: bool = False) -> int: ...
    def is_coming(self, tokens: Sequence[int] | None, space: str) -> bool: ...
    def beginning(self, rid: int) -> list[int]: ...
    def next_cut(self, rid: int) -> int | None: ...
    def reserve(self, rid: int, num_rows: int, *, later_rows: int = 0) -> bool: ...
    def release(self, rid: int, *, keep: bool = True) -> None: ...
    def length(self, rid: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Policies:
    """One filler of each policy socket. draft: None = nothing is drafted; evict: None = texts are not reused."""

    order: OrderPolicy = field(default_factory=FCFS)
    victim: VictimPolicy = field(default_factory=Youngest)
    chunk: ChunkPolicy = field(default_factory=Aligned)
    length: LengthPolicy = field(default_factory=Limit)
    draft: DraftPolicy | None = None
    evict: EvictPolicy | None = None

    def learn(self, record: Record) -> None:
        """Tell all of them."""
        for policy in (self.order, self.victim, self.chunk, self.length, self.draft, self.evict):
            if policy is not None:
                policy.learn(record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """max_rows: of a step; max_seqs: that run at once; runs_ahead: whether plain steps can be run as one; extra: rows
    that ride along with every draft."""

    max_rows: int
    max_seqs: int
    runs_ahead: bool = False
    extra: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What a job gets of a step. is_last: after these rows its next token is known."""

    job: Job
    num_rows: int
    is_decode: bool
    is_last: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A step. shares: decodes first; budgets: per number of a job, tokens that may be drafted for it; num_steps: plain
    steps that shall run as one (their rows are reserved); preempted: jobs that lost their cache to it; contexts, pairs:
    see `stretto.core.policy.Record`."""

    shares: tuple[Share, ...] = ()
    budgets: Mapping[int, int] = field(default_factory=dict)
    num_steps: int = 1
    preempted: tuple[Job, ...] = ()
    contexts: int = 0
    pairs: float = 0.0

    @property
    def is_decode(self) -> bool:
        return all(share.is_decode for share in self.shares)


def served(plan: Plan, emitted: Mapping[int, int]) -> tuple[tuple[str, int, int], ...]:
    """Per tenant, the prompt tokens that a plan reads and the tokens that its jobs emitted, by their numbers."""
    found: dict[str, list[int]] = {}
    for share in plan.shares:
        own = found.setdefault(share.job.tenant, [0, 0])
        own[0] += 0 if share.is_decode else share.num_rows
        own[1] += emitted.get(share.job.rid, 0)
    return tuple((tenant, *own) for tenant, own in found.items())  # type: ignore[misc]


class Scheduler:
    """Queues, and the decision of every step."""

    def __init__(self, memory: Memory, policies: Policies, limits: Limits) -> None:
        assert limits.max_rows > limits.max_seqs >= 1, "every running job must be able to decode in every step"
        self.memory, self.policies, self.limits = memory, policies, limits
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.listeners: list[Callable[[Record], None]] = []  # who else hears of every step
        self._pace = 0, 0.0  # of the latest plain step: its jobs, its seconds

    def add(self, job: Job) -> None:
        """Queue a new job."""
        job.expected = self.policies.length.expect(job)
        self.waiting.append(job)

    def remove(self, job: Job, *, keep: bool = True, ended: bool = False) -> None:
        """Forget a job (it ended, or was cancelled). keep: what the cache has of it may be left to others; ended: by
        itself, so that its length says something."""
        if ended:
            self.policies.length.ended(job)
        if job.is_running:
            self.running.remove(job)
            self.memory.release(job.rid, keep=keep)
        else:
            self.waiting.remove(job)

    def preempt(self, job: Job, *, keep: bool = True) -> None:
        """Put a running job back into the queue: its tokens stay, its cache is left to the prefix cache (`keep`), or
        computed again."""
        self.running.remove(job)
        self.memory.release(job.rid, keep=keep)
        job.is_running, job.held = False, 0
        job.num_preemptions += 1
        self.waiting.insert(0, job)

    def schedule(self, now: float, patience: float = 0.0) -> Plan:
        """The next step; empty if nothing is queued. patience: seconds for which nobody needs to hear anything."""
        for job in self.running:
            job.held = self.memory.length(job.rid)
        shares, preempted = _Placement(self, now).place()
        decoding = sorted((s for s in shares if s.is_decode), key=lambda s: self.memory.beginning(s.job.rid))
        shares = [*decoding, *(share for share in shares if not share.is_decode)]
        budgets = self._budgets(shares)
        steps = 1 if budgets else self._steps_ahead(shares, patience)
        contexts = sum(share.job.held for share in shares if share.is_decode)
        pairs = sum(s.num_rows * (s.job.held + s.num_rows / 2) for s in shares if not s.is_decode)
        return Plan(tuple(shares), budgets, steps, tuple(preempted), contexts, pairs)

    def grant(self, job: Job, num_rows: int) -> bool:
        """Whether there is memory for so many provisional rows beside the one that decodes; it is reserved then."""
        return self.memory.reserve(job.rid, 1 + num_rows)

    def advance(self, job: Job, num_rows: int, emitted: int) -> None:
        """The cache holds `num_rows` more rows of a job, which has `emitted` more tokens."""
        job.held += num_rows
        job.output += emitted

    def learn(self, record: Record) -> None:
        """A step is over: the policies hear of it."""
        if record.is_decode and not record.drafted:
            self._pace = record.num_seqs, record.seconds / record.num_steps
        self.policies.learn(record)
        for listener in self.listeners:
            listener(record)

    def _budgets(self, shares: Sequence[Share]) -> dict[int, int]:
        jobs = [share.job for share in shares if share.is_decode and share.job.drafts]
        if self.policies.draft is None or not jobs:
            return {}
        spare = (self.limits.max_rows - sum(share.num_rows for share in shares)) // len(jobs) - self.limits.extra
        most = min(spare, MAX_TREE_ROWS - 1 - self.limits.extra)
        budgets = self.policies.draft.budgets(jobs, max(0, most))
        limits = (min(n, job.remaining - 1) for n, job in zip(budgets, jobs, strict=True))
        return {job.rid: n for job, n in zip(jobs, limits, strict=True) if n > 0}

    def _steps_ahead(self, shares: Sequence[Share], patience: float) -> int:
        """How many plain steps may follow one another from here without asking anybody; their rows are reserved."""
        running, (plain_rows, seconds) = len(shares), self._pace
        is_full = running == self.limits.max_seqs
        is_plain = bool(shares) and all(share.is_decode for share in shares)
        if not self.limits.runs_ahead or not is_plain or (self.waiting and not is_full):
            return 1
        if patience <= 0 or running > plain_rows or seconds * 2 > patience or not all(s.job.ahead for s in shares):
            return 1
        steps = min(MAX_AHEAD, int(patience / seconds) if seconds else MAX_AHEAD)
        if self.policies.draft is not None and any(share.job.drafts for share in shares):
            steps = min(steps, self.policies.draft.plain_steps(running))
        steps = min(steps, min(share.job.remaining for share in shares))
        return steps if all(self.memory.reserve(share.job.rid, steps) for share in shares) else 1


class _Placement:
    """One step being filled."""

    def __init__(self, scheduler: Scheduler, now: float) -> None:
        self._scheduler, self._now = scheduler, now
        self._memory, self._policies = scheduler.memory, scheduler.policies
        self._budget = scheduler.limits.max_rows
        self._shares: dict[int, Share] = {}
        self._preempted: list[Job] = []

    def place(self) -> tuple[list[Share], list[Job]]:
        running, waiting = self._scheduler.running, self._scheduler.waiting
        self._policies.chunk.begin(running)
        for job in sorted(self._policies.order.order(running, self._now), key=lambda job: job.need != 1):
            if job.is_running:  # it may have been preempted meanwhile
                self._continue(job)
        if not self._preempted:
            self._fill(self._policies.order.order(waiting, self._now))
        return list(self._shares.values()), self._preempted

    def _fill(self, waiting: Sequence[Job]) -> None:
        held = 0
        for job in waiting:
            if self._budget <= 0 or len(self._scheduler.running) == self._scheduler.limits.max_seqs or held > MAX_HELD:
                return
            if not job.fresh and self._memory.is_coming(job.tokens, job.space):
                held += 1
                self._shorten()
            elif not self._admit(job):
                return

    def _rows(self, job: Job) -> int:
        """Of a prompt no more than up to where its state is to be kept."""
        rows, cut = self._policies.chunk.rows(job, self._budget), self._memory.next_cut(job.rid)
        return rows if cut is None else min(rows, cut - job.held)

    def _shorten(self) -> None:
        """A prompt that has its share may have been told of an earlier place where its state is to be kept."""
        for rid, share in self._shares.items():
            cut = self._memory.next_cut(rid)
            if cut is not None and share.job.held < cut < share.job.held + share.num_rows:
                rows = cut - share.job.held
                self._budget += share.num_rows - rows
                self._shares[rid] = Share(share.job, rows, is_decode=False, is_last=False)

    def _continue(self, job: Job) -> None:
        rows = self._rows(job)
        while rows > 0 and not self._memory.reserve(job.rid, rows):
            victim = self._policies.victim.victim(self._scheduler.running, self._now)
            self._scheduler.preempt(victim)
            self._preempted.append(victim)
            share = self._shares.pop(victim.rid, None)
            self._budget += share.num_rows if share is not None else 0
            if victim is job:
                return
        self._give(job, rows)

    def _admit(self, job: Job) -> bool:
        """An admission must find room for its whole prompt, or it would be preempted by its own second chunk."""
        job.held, fits = self._memory.admit(job.rid, job.tokens, job.space, fresh=job.fresh), False
        try:
            rows = self._rows(job)
            fits = rows > 0 and self._memory.reserve(job.rid, rows, later_rows=job.need - rows)
        finally:
            if not fits:
                self._memory.release(job.rid, keep=False)
                job.held = 0
        if not fits:
            return False
        job.cached = job.held if job.cached is None else job.cached
        self._scheduler.waiting.remove(job)
        self._scheduler.running.append(job)
        job.is_running = True
        self._give(job, rows)
        return True

    def _give(self, job: Job, rows: int) -> None:
        if rows > 0:
            self._shares[job.rid] = Share(job, rows, is_decode=job.need == 1, is_last=rows == job.need)
            self._budget -= rows
