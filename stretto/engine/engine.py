"""`Engine`: continuous batching with drafts. `Engine.step` is the whole system in one function.

    schedule -> propose -> pack -> forward -> judge -> commit -> observe -> advance

An engine is an ordinary object: model, cache, drafter, judge, policies and clock are arguments, nothing is global, and
several engines live in one process. It is not thread-safe; `AsyncLLM` owns one in a thread.
"""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from stretto.cache.manager import CacheManager
from stretto.cache.pools import Pools
from stretto.cache.sizes import size_pools
from stretto.core.card import Can
from stretto.core.drafter import Ask, Draft, Drafter, Verdict
from stretto.core.errors import UserError
from stretto.core.judge import Judge, Noise
from stretto.core.page_format import Plain, page_format
from stretto.core.plan import StepPlan
from stretto.core.policy import DraftPolicy, OrderPolicy
from stretto.core.sampling import Sampling
from stretto.core.seqs import MAX_TREE_ROWS, Seqs
from stretto.engine import abilities
from stretto.engine.captured import Captured
from stretto.engine.drafting import DraftStats
from stretto.engine.judges.coupled import Coupled
from stretto.engine.judges.greedy import Greedy
from stretto.engine.output import advance
from stretto.engine.policies.fcfs import FCFS
from stretto.engine.request import Event, Phase, Request, TextStream, Timeline, TokenLogprobs, check_prompt
from stretto.engine.scheduler import Placed, Scheduler
from stretto.engine.verify import Asked, Failures, Scores, decide, emitted_logprobs, row_samplings
from stretto.kernels.native.library import Team
from stretto.models.lm import LM

MAX_AHEAD = 16  # plain steps in a row


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Sizes. context: longest sequence; max_seqs: requests that run at once; max_rows: token budget of a step;
    memory_bytes: for the cache; kv: the format of cached keys and values, a codec with `Can.KV`, or "auto": the model's
    dtype; coarse_prompts: native kernels compute prompts with 8-bit activations and 16-bit attention."""

    context: int
    max_seqs: int = 32
    max_rows: int = 512
    memory_bytes: int = 2 << 30
    kv: str = "auto"
    coarse_prompts: bool = False


class Engine:
    """Runs requests over one model. eos_ids: tokens that end a text; vocab_size: ids beyond it are never sampled.

    threads: run the forward pass as a tape of native kernels on these (the model's matrices are packed for them).
    notes: what a user should know about how it runs. Raises UserError for a model that cannot be run as asked.
    """

    def __init__(
        self,
        model: LM,
        config: EngineConfig,
        *,
        drafter: Drafter | None = None,
        draft_policy: DraftPolicy | None = None,
        judge: Judge | None = None,
        order: OrderPolicy | None = None,
        eos_ids: frozenset[int] = frozenset(),
        vocab_size: int | None = None,
        threads: Team | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert (drafter is None) == (draft_policy is None), "a drafter comes with the policy that limits it"
        abilities.check(model, config.max_seqs)
        self.model, self.config = model, config
        self.vocab_size = min(vocab_size or model.config.vocab_size, model.config.vocab_size)
        max_rows = max(config.max_rows, config.max_seqs + 1)
        self.kv = Plain(model.dtype) if config.kv == "auto" else page_format(config.kv)
        sizes = size_pools(
            model.state_specs,
            self.kv,
            model.dtype,
            context=config.context + MAX_TREE_ROWS,
            max_seqs=config.max_seqs,
            max_rows=max_rows,
            memory_bytes=config.memory_bytes,
        )
        pools = Pools(
            model.state_specs,
            num_blocks=sizes.num_blocks,
            num_slots=sizes.num_slots,
            kv=self.kv,
            state_dtype=model.dtype,
            lanes=threads is not None,
        )
        self.captured: Captured | None = None
        if threads is not None:
            room = {"max_rows": max_rows, "context": config.context + MAX_TREE_ROWS, "vocab_size": self.vocab_size}
            self.captured = Captured(model, pools, threads, **room, coarse_prompts=config.coarse_prompts)
        self.forward: Callable[[StepPlan], Scores] = self.captured or self._through_torch
        # Native attention reads what a row sees and no more.
        self.cache = CacheManager(pools, clears=self.captured is None or bool(self.captured.host_operations))
        self.scheduler = Scheduler(self.cache, order or FCFS(), max_seqs=config.max_seqs, max_rows=max_rows)
        self.drafter, self.draft_policy = drafter, draft_policy
        self.greedy, self.judge = Greedy(), judge or Coupled()
        self.can = model.can
        host = self.captured.host_operations if self.captured is not None else {}
        self.notes = abilities.notes(host, self.can & self.judge.can, drafts=drafter is not None)
        self.eos_ids, self.clock = eos_ids, clock
        self.stats = DraftStats()
        self._requests: dict[int, Request] = {}
        self._drafting: set[int] = set()  # requests that the drafter knows
        self._next_rid = 0
        self._pace = 0, 0.0  # of the latest plain step: its requests, its seconds

    # -- requests --------------------------------------------------------------------------------------------------

    def add(
        self, prompt: Sequence[int], sampling: Sampling, text: TextStream | None = None, *, child: int = 0
    ) -> Request:
        """Queue a prompt. `sampling` must be resolved. Raises UserError for anything that cannot be run."""
        check_prompt(prompt, self.vocab_size, self.config.context)
        if sampling.stops and text is None:
            raise UserError("stop strings need a tokenizer", why="this engine was given none", try_="stop_token_ids")
        if sampling.temperature and Can.SAMPLED not in self.judge.can:
            why = f"the judge {type(self.judge).__name__} decides at temperature 0 only"
            raise UserError(f"temperature {sampling.temperature} cannot be served", why=why, try_="temperature=0")
        for token in (*sampling.logit_bias, *sampling.stop_token_ids):
            if token >= self.vocab_size:
                raise UserError(f"token id {token} does not exist", why=f"the vocabulary has {self.vocab_size} tokens")
        room = self.config.context - len(prompt)
        seed = random.SystemRandom().getrandbits(63) if sampling.seed is None else sampling.seed
        stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self.eos_ids)
        request = Request(
            rid=self._next_rid,
            prompt=tuple(prompt),
            sampling=sampling,
            noise=Noise(seed, child),
            max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
            stop_ids=stop_ids,
            timeline=Timeline(arrived=self.clock()),
            text=text,
        )
        self._next_rid += 1
        self._requests[request.rid] = request
        self.scheduler.add(request)
        return request

    def cancel(self, rid: int) -> Event | None:
        """End a request now and free what it holds. None if it has already ended."""
        request = self._requests.get(rid)
        if request is None:
            return None
        event = self._finish(request, Event(rid, (), "", "cancelled"))
        self._forget(rid)
        return event

    @property
    def is_idle(self) -> bool:
        """Whether no request is queued or running."""
        return not self._requests

    def _through_torch(self, plan: StepPlan) -> Scores:
        logits = self.model(plan)[:, : self.vocab_size]
        return Scores(lambda: logits)

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, patience: float = 0.0) -> list[Event]:
        """Advance every scheduled request; returns what happened. Empty if there is nothing to do.

        A request that gives no token (NaN, everything banned) ends with an error, and no other does. A step that raises
        ends all requests with that error (if there is none left, or for an interrupt, it is raised); the engine is
        empty then, and serves on. patience: seconds for which the caller needs to hear nothing. Native engines may fill
        them with several plain steps: the same tokens, reported together.
        """
        events: list[Event] = []
        try:
            if self.captured is not None:
                self._step(patience, events)
            else:
                with torch.inference_mode():  # a native step has nothing that could record gradients
                    self._step(patience, events)
        except BaseException as problem:  # whatever it is, requests in the middle of a step cannot go on
            ended = self._abandon(problem)
            if not ended or not isinstance(problem, Exception):
                raise
            events += ended
        return events

    def _step(self, patience: float, events: list[Event]) -> None:
        started = self.clock()
        batch = self._schedule()
        if not batch:
            return
        drafts = self._propose(batch)
        if (num_steps := self._steps_ahead(batch, patience)) > 1:
            asked, verdicts, failures, num_steps = self._run_ahead(batch, num_steps)
            logprobs: Sequence[Sequence[TokenLogprobs]] = [()] * len(asked)
        else:
            plan, seqs = self._pack(batch, drafts)
            asked = [Asked(p.request, draft) for p, draft in zip(batch, drafts, strict=True) if p.is_last]
            scores = self.forward(plan)
            verdicts, failures = decide(scores, asked, self._judge_for) if asked else ([], {})
            logprobs = emitted_logprobs(scores, asked, verdicts)
            self._commit(batch, seqs, asked, verdicts)
        self._observe(batch, asked, verdicts, failures, self.clock() - started, num_steps)
        for one, verdict, own in zip(asked, verdicts, logprobs, strict=True):
            request = one.request
            if not verdict.emitted and request.rid not in failures:
                request.is_alone = True
                self.scheduler.preempt(request)  # its draft may have spoiled what is cached
                self._forget(request.rid)
                continue
            event = advance(one, verdict, own, self.clock) if verdict.emitted else Event(request.rid, (), "")
            if event.finish_reason is None and request.rid in failures:
                event = replace(event, finish_reason="error", error=failures[request.rid])
            events.append(event if event.finish_reason is None else self._finish(request, event))
            if event.finish_reason is not None:
                self._forget(request.rid)

    def _schedule(self) -> list[Placed]:
        batch = self.scheduler.schedule()
        now = self.clock()
        for placed in batch:
            if placed.request.timeline.started is None:
                placed.request.timeline.started = now
        if self.drafter is not None:
            for victim in self.scheduler.preempted:
                self._forget(victim.rid)
            for request in (placed.request for placed in batch):
                if request.rid not in self._drafting:
                    self.drafter.admit(request.rid, request.tokens)
                    self._drafting.add(request.rid)
        return batch

    def _propose(self, batch: Sequence[Placed]) -> list[Draft]:
        """A draft per scheduled request (empty where none is wanted), within the rows and pages that are left."""
        drafts = [Draft() for _ in batch]
        decodes = [i for i, placed in enumerate(batch) if placed.is_decode]
        if self.drafter is None or self.draft_policy is None or not decodes:
            return drafts
        spare = (self.scheduler.max_rows - sum(p.num_rows for p in batch)) // len(decodes)
        nodes = min(self.draft_policy.num_nodes(len(decodes)), spare, MAX_TREE_ROWS - 1)
        asks, indices = [], []
        for i in decodes:
            request = batch[i].request
            may = not request.is_alone and Can.CHAIN in self._can_draft(request)
            limit = min(nodes, request.remaining - 1) if may else 0
            if limit > 0:
                asks.append(Ask(request.rid, limit))
                indices.append(i)
        for i, draft in zip(indices, self.drafter.propose(asks) if asks else (), strict=True):
            assert len(draft) <= nodes
            if Can.TREE not in self._can_draft(batch[i].request):
                draft = draft.chain()
            if len(draft) and self.cache.reserve(batch[i].request.rid, 1 + len(draft)):
                drafts[i] = draft
        return drafts

    def _pack(self, batch: Sequence[Placed], drafts: Sequence[Draft]) -> tuple[StepPlan, Seqs]:
        """Tokens, positions, pages and slots of the step, as the arguments of one forward pass."""
        tokens: list[int] = []
        wanted: list[int] = []
        contexts = [self.cache.length(p.request.rid) for p in batch]
        for placed, draft, context in zip(batch, drafts, contexts, strict=True):
            tokens += [*placed.request.tokens[context : context + placed.num_rows], *draft.tokens]
            if placed.is_last:
                wanted += range(len(tokens) - len(draft) - 1, len(tokens))
        seqs = Seqs.of(
            [p.num_rows + len(d) for p, d in zip(batch, drafts, strict=True)],
            contexts,
            num_draft=[len(d) for d in drafts],
            parents=[None if d.parents is None else (-1, *(parent + 1 for parent in d.parents)) for d in drafts],
            num_step=sum(p.is_decode for p in batch),
        )
        caches = self.cache.pack([p.request.rid for p in batch], seqs)
        return StepPlan(tokens, seqs, wanted, caches), seqs

    def _steps_ahead(self, batch: Sequence[Placed], patience: float) -> int:
        """How many plain steps may follow one another from here without asking anybody; their rows are reserved."""
        running, plain_rows, seconds = len(batch), *self._pace
        is_full = running == self.scheduler.max_seqs
        can = self.captured is not None and not self.captured.host_operations
        if not can or not all(p.is_decode for p in batch) or (self.scheduler.waiting and not is_full):
            return 1
        if patience <= 0 or running > plain_rows or seconds * 2 > patience:
            return 1
        steps = min(MAX_AHEAD, int(patience / seconds) if seconds else MAX_AHEAD)
        if self.draft_policy is not None:
            steps = min(steps, self.draft_policy.plain_steps(running))
        for request in (p.request for p in batch):
            is_free = request.sampling.logprobs is None and self._judge_for(request).head == "picks"
            if not is_free or row_samplings(Asked(request, Draft()))[0].is_adjusted:
                return 1
            steps = min(steps, request.remaining)
        return steps if all(self.cache.reserve(p.request.rid, steps) for p in batch) else 1

    def _run_ahead(self, batch: Sequence[Placed], num_steps: int) -> tuple[list[Asked], list[Verdict], Failures, int]:
        """Several plain steps: to the cache the rows after the first are a chain of which some are kept.

        At most `num_steps`; the last number says how many. A sequence that failed did so in the last of them.
        """
        assert self.captured is not None
        requests = [p.request for p in batch]
        rids, n = [r.rid for r in requests], len(requests)
        contexts = [self.cache.length(rid) for rid in rids]
        seqs = Seqs.of([num_steps] * n, contexts, num_draft=[num_steps - 1] * n, num_step=n)
        caches = self.cache.pack(rids, seqs)
        plan = StepPlan([r.tokens[-1] for r in requests], Seqs.of([1] * n, contexts, num_step=n), range(n), caches)
        how = [(r.sampling, r.noise, len(r.tokens)) for r in requests]
        chosen, refused = self.captured.ahead(plan, how, [r.stop_ids for r in requests], num_steps)
        self.cache.commit(rids, seqs, [range(1, len(chosen))] * n)
        verdicts = [Verdict((), tokens) for tokens in zip(*chosen, strict=True)]
        for b in refused:
            verdicts[b] = Verdict((), verdicts[b].emitted[:-1])
        failures = {rids[b]: why for b, why in refused.items()}
        return [Asked(request, Draft()) for request in requests], verdicts, failures, len(chosen)

    def _can_draft(self, request: Request) -> Can:
        return self.can & self._judge_for(request).can

    def _judge_for(self, request: Request) -> Judge:
        return self.greedy if request.sampling.temperature == 0 else self.judge

    def _commit(self, batch: Sequence[Placed], seqs: Seqs, asked: Sequence[Asked], verdicts: Sequence[Verdict]) -> None:
        """Keep definite rows and accepted paths: row 0 of a decode is the pending token, row i + 1 node i."""
        accepted = {a.request.rid: v.path for a, v in zip(asked, verdicts, strict=True)}
        rids = [p.request.rid for p in batch]
        paths = [[node + 1 for node in accepted.get(rid, ())] for rid in rids]
        if self.captured is not None and any(paths):
            self.captured.commit(seqs, paths)
        self.cache.commit(rids, seqs, paths)

    def _observe(
        self,
        batch: Sequence[Placed],
        asked: Sequence[Asked],
        verdicts: Sequence[Verdict],
        failures: Failures,
        seconds: float,
        num_steps: int,
    ) -> None:
        drafted, emitted = sum(len(one.draft) for one in asked), sum(len(verdict.emitted) for verdict in verdicts)
        are_decodes = all(placed.is_decode for placed in batch)
        if are_decodes and not drafted:
            self._pace = len(batch), seconds / num_steps
        if self.drafter is None or self.draft_policy is None:
            return
        for one, verdict in zip(asked, verdicts, strict=True):
            if verdict.emitted and one.request.rid not in failures:  # others are released in this step
                self.drafter.observe(one.request.rid, one.draft, verdict)
                self.stats.add(one.draft, verdict)
        for _ in range(num_steps if are_decodes else 0):
            self.draft_policy.learn(
                drafted=drafted, emitted=emitted // num_steps, num_running=len(batch), seconds=seconds / num_steps
            )

    def _finish(self, request: Request, event: Event) -> Event:
        """The last event of a request, which gives back everything but what the drafter holds."""
        self.scheduler.remove(request)
        request.move(Phase.FINISHED)
        request.timeline.finished = self.clock()
        del self._requests[request.rid]
        rest = request.text.finish() if request.text is not None and event.error is None else ""
        return replace(event, text=event.text + rest)

    def _forget(self, rid: int) -> None:
        """The drafter releases a request if it knows it."""
        if self.drafter is not None and rid in self._drafting:
            self._drafting.discard(rid)
            self.drafter.release(rid)

    def _abandon(self, problem: BaseException) -> list[Event]:
        """End every request with the error of a step that may have torn its state."""
        for rid in list(self._drafting):
            with suppress(Exception):  # the drafter may be what failed; others are released all the same
                self._forget(rid)
        error = problem if isinstance(problem, Exception) else None
        return [self._finish(r, Event(r.rid, (), "", "error", error=error)) for r in list(self._requests.values())]
