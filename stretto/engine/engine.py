"""`Engine`: continuous batching with drafts. `Engine.step` is the whole system in one function.

    schedule -> propose -> pack -> forward -> judge -> commit -> observe -> advance

An engine is an ordinary object: model, drafter, judge, policies and clock are arguments, nothing is global, and several
engines live in one process. It is not thread-safe; `AsyncLLM` owns one in a thread.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from stretto.core.drafter import Drafter, Needs
from stretto.core.judge import Judge
from stretto.core.sampling import Sampling
from stretto.engine import abilities
from stretto.engine.drafting import Drafting
from stretto.engine.judges.coupled import Coupled
from stretto.engine.loras import Loras
from stretto.engine.output import advance, embed
from stretto.engine.request import Event, How, Request, TextStream, make_request
from stretto.engine.scheduler import Plan, Policies
from stretto.engine.step import Outcome, run_ahead, run_one
from stretto.engine.trace import Event as TraceEvent
from stretto.engine.trace import make_scheduler
from stretto.kernels.native.library import Team
from stretto.runner.kept import KeptModel
from stretto.runner.runner import Runner, Sizes

if TYPE_CHECKING:
    from stretto.kernels.lora import LoraTable
    from stretto.models.lm import LM


class Engine:
    """Runs requests over one model. eos_ids: tokens that end a text; vocab_size: ids beyond it are never sampled.

    threads: run the forward pass as a tape of native kernels on these (the model's matrices are in their layout).
    trace: gets every call of the scheduler (`engine/trace.py`). loras: room for adapters in the model
    (`models/lora.py`). notes: what a user should know of it. Raises UserError for a model that cannot be run as asked.
    """

    def __init__(
        self,
        model: "LM | KeptModel",
        sizes: Sizes,
        *,
        drafter: Drafter | None = None,
        judge: Judge | None = None,
        policies: Policies | None = None,
        eos_ids: frozenset[int] = frozenset(),
        vocab_size: int | None = None,
        threads: Team | None = None,
        clock: Callable[[], float] = time.perf_counter,
        trace: Callable[[TraceEvent], None] | None = None,
        loras: "LoraTable | None" = None,
    ) -> None:
        policies = policies or Policies()
        assert (drafter is None) == (policies.draft is None), "a drafter comes with the policy that limits it"
        abilities.check(model, sizes.max_seqs)
        self.judge = judge or Coupled()
        needs = drafter.needs if drafter is not None else Needs()
        evict = policies.evict if abilities.reuses_prefixes(model, needs) else None
        self.runner = Runner(model, sizes, threads, taps=needs.features, vocab_size=vocab_size, evict=evict)
        self.drafting = Drafting(drafter, model.can & self.judge.can, self.runner.vocab_size)
        limits = abilities.limits(self.runner, self.judge, needs, self.drafting.extra)
        self.scheduler = make_scheduler(self.runner.cache, policies, limits, trace)
        self.notes = abilities.notes(self.runner.host_operations, self.drafting.can, drafts=drafter is not None)
        self.eos_ids, self.clock, self.loras = eos_ids, clock, Loras(loras)
        self._requests, self._next_rid = dict[int, Request](), 0

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        text: TextStream | None = None,
        *,
        lora: str | None = None,
        **how: Unpack[How],
    ) -> Request:
        """Queue a prompt. `sampling` must be resolved. lora: name of an adapter that is loaded. how: what else can be
        said of a request. Raises UserError for anything that cannot be run."""
        abilities.check_sampling(self.judge, sampling)
        request = make_request(
            self._next_rid,
            prompt,
            sampling,
            text,
            eos_ids=self.eos_ids,
            vocab_size=self.runner.vocab_size,
            context=self.runner.sizes.context,
            arrived=self.clock(),
            lora=None if lora is None else self.loras.find(lora),
            **how,
        )
        self.loras.hold(request.lora)
        self._next_rid, self._requests[request.rid] = self._next_rid + 1, request
        self.scheduler.add(request.job)
        return request

    def cancel(self, rid: int) -> Event | None:
        """End a request now and free what it holds. None if it has already ended."""
        if (request := self._requests.get(rid)) is None:
            return None
        try:
            return self._finish(request, Event(rid, (), "", "cancelled"))
        finally:
            self.drafting.forget(rid)

    @property
    def is_idle(self) -> bool:
        """Whether no request is queued or running."""
        return not self._requests

    def step(self, patience: float = 0.0) -> list[Event]:
        """Advance every scheduled request; returns what happened. Empty if there is nothing to do.

        A request that gives no token (NaN, everything banned) ends with an error, and no other does. A step that raises
        ends all with that error (if none is left, or for an interrupt, it is raised); the engine is empty then, and
        serves on. patience: seconds in which the caller needs to hear nothing: several plain steps may fill them.
        """
        events: list[Event] = []
        try:
            started = self.clock()
            plan = self._schedule(started, patience)
            if plan.shares:
                run = run_one if plan.num_steps == 1 else run_ahead
                outcome = run(plan, self._requests, self.runner, self.drafting, self.scheduler, self.judge)
                self.drafting.observe(outcome.asked, outcome.decisions)
                self.scheduler.learn(outcome.record(plan, self.clock() - started))
                self._advance(outcome, events)
        except BaseException as problem:  # whatever it is, requests in the middle of a step cannot go on
            ended = self._abandon(problem)
            if not ended or not isinstance(problem, Exception):
                raise
            events += ended
        return events

    def _schedule(self, now: float, patience: float) -> Plan:
        for request in self._requests.values():
            request.prepare(drafts=self.drafting.works)
        self.drafting.look(self._requests.values())
        plan = self.scheduler.schedule(now, patience)
        for job in plan.preempted:
            self.drafting.forget(job.rid)
        requests = [self._requests[share.job.rid] for share in plan.shares]
        for request in requests:
            request.timeline.start(now)
        self.drafting.begin([request for request in requests if request.pool is None])
        return plan

    def _advance(self, outcome: Outcome, events: list[Event]) -> None:
        """Tokens become text and events; requests that ended give back what they hold."""
        for one, decision, logprobs in zip(outcome.asked, outcome.decisions, outcome.logprobs, strict=True):
            request = one.request
            if not decision.verdict.emitted and decision.failure is None:
                request.is_alone = True
                self.scheduler.preempt(request.job, keep=False)  # its draft may have spoiled what is cached
                self.drafting.forget(request.rid)
                continue
            event = advance(one, decision, logprobs, self.clock)
            self.scheduler.advance(request.job, outcome.rows[request.rid], len(event.token_ids))
            events.append(event if event.finish_reason is None else self._finish(request, event))
            if event.finish_reason is not None:
                self.drafting.forget(request.rid, keep=event.error is None)

        for request in outcome.embedded:
            self.scheduler.advance(request.job, outcome.rows[request.rid], 0)
            events.append(self._finish(request, embed(request)))

    def _finish(self, request: Request, event: Event) -> Event:
        """The last event of a request, which gives back everything but what the drafter holds."""
        self.scheduler.remove(request.job, keep=event.error is None, ended=event.finish_reason in ("stop", "length"))
        self.loras.release(request.lora)
        request.timeline.finished = self.clock()
        del self._requests[request.rid]
        rest = request.text.finish() if request.text is not None and event.error is None else ""
        return replace(event, text=event.text + rest)

    def _abandon(self, problem: BaseException) -> list[Event]:
        """End every request with the error of a step that may have torn its state."""
        self.drafting.abandon()
        error = problem if isinstance(problem, Exception) else None
        return [self._finish(r, Event(r.rid, (), "", "error", error=error)) for r in list(self._requests.values())]
