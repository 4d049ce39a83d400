"""Who runs in the next step, and with how many rows. Integers only.

One rule, no phases: a request needs as many rows as it has tokens that are not in the cache. Decodes (need 1) come
first, then prompts that have begun, then admissions in the order of the policy. When pages run out the policy's
victim goes back to the head of the queue: its tokens stay, its cache is computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stretto.core.policy import Candidate, OrderPolicy
from stretto.engine.request import Phase, Request

ALIGN = 64  # unfinished prefill chunks end on multiples of this: recurrent kernels anchor their chunks there


class Memory(Protocol):
    """What the scheduler asks of the cache."""

    def admit(self, rid: int) -> None: ...
    def reserve(self, rid: int, num_rows: int, *, later_rows: int = 0) -> bool: ...
    def release(self, rid: int) -> None: ...
    def length(self, rid: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Placed:
    """A request in the plan of a step. is_last: after these rows the next token is known."""

    request: Request
    num_rows: int
    is_decode: bool
    is_last: bool


class Scheduler:
    """Queues and the decision of every step. max_rows: token budget of a step; max_seqs: requests that run at once."""

    def __init__(self, memory: Memory, order: OrderPolicy, *, max_seqs: int, max_rows: int) -> None:
        assert max_rows > max_seqs >= 1, "every running request must be able to decode in every step"
        self._memory, self._order = memory, order
        self.max_seqs, self.max_rows = max_seqs, max_rows
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preempted: list[Request] = []  # in the last step; the engine tells the drafter

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request (it finished or was cancelled) and free its cache."""
        if request in self.running:
            self.running.remove(request)
            self._memory.release(request.rid)
        else:
            self.waiting.remove(request)

    def preempt(self, request: Request) -> None:
        """Put a running request back to the head of the queue: its tokens stay, its cache is computed again."""
        self.running.remove(request)
        self._memory.release(request.rid)
        request.move(Phase.WAITING)
        request.num_preemptions += 1
        self.waiting.insert(0, request)

    def schedule(self) -> list[Placed]:
        """The next step, decodes first. Empty if nothing is queued."""
        self.preempted = []
        placed: dict[int, Placed] = {}
        budget = self.max_rows
        for request in sorted(self.running, key=lambda r: self._need(r) != 1):
            if not self.preempted or request in self.running:  # it may have been preempted meanwhile
                budget -= self._place(request, budget, placed)
        while self.waiting and not self.preempted and budget > 0 and len(self.running) < self.max_seqs:
            request = self._next_waiting()
            self._memory.admit(request.rid)
            used = 0
            try:
                used = self._place(request, budget, placed, may_preempt=False)
            finally:
                if not used:
                    self._memory.release(request.rid)
            if not used:
                break
            self.waiting.remove(request)
            request.move(Phase.RUNNING)
            self.running.append(request)
            budget -= used
        return sorted(placed.values(), key=lambda p: not p.is_decode)

    def _need(self, request: Request) -> int:
        return len(request.tokens) - self._memory.length(request.rid)

    def _place(self, request: Request, budget: int, placed: dict[int, Placed], may_preempt: bool = True) -> int:
        """Rows given to `request`, minus rows taken back from victims."""
        need, done = self._need(request), self._memory.length(request.rid)
        rows = min(need, budget)
        if rows < need and (done + rows) // ALIGN * ALIGN > done:
            rows = (done + rows) // ALIGN * ALIGN - done
        if rows <= 0:
            return 0
        returned = 0
        # An admission must find room for its whole prompt, or it would be preempted by its own second chunk.
        while not self._memory.reserve(request.rid, rows, later_rows=0 if may_preempt else need - rows):
            if not may_preempt:
                return 0
            victim = self._victim()
            returned += self._preempt(victim, placed)
            if victim is request:
                return -returned
        placed[request.rid] = Placed(request, rows, is_decode=need == 1, is_last=rows == need)
        return rows - returned

    def _preempt(self, victim: Request, placed: dict[int, Placed]) -> int:
        self.preempt(victim)
        self.preempted.append(victim)
        plan = placed.pop(victim.rid, None)
        return plan.num_rows if plan is not None else 0

    def _victim(self) -> Request:
        choice = self._order.victim(self._candidates(self.running))
        return next(r for r in self.running if r.rid == choice.rid)

    def _next_waiting(self) -> Request:
        choice = self._order.order(self._candidates(self.waiting))[0]
        return next(r for r in self.waiting if r.rid == choice.rid)

    def _candidates(self, requests: Sequence[Request]) -> list[Candidate]:
        return [
            Candidate(
                rid=r.rid,
                arrival=r.rid,  # ids are given in order of arrival
                need=self._need(r) if r.phase is Phase.RUNNING else len(r.tokens),
                num_computed=self._memory.length(r.rid) if r.phase is Phase.RUNNING else 0,
                running=r.phase is Phase.RUNNING,
            )
            for r in requests
        ]
