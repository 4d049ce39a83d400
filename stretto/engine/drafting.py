"""What the engine does for its drafter: asks it, tells it what became of its drafts, and counts."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stretto.core.card import Can
from stretto.core.drafter import Ask, Branch, Draft, Drafter, Needs, Piece, Round, Verdict
from stretto.core.tree import MAX_TREE_ROWS
from stretto.engine.constrained import forced, is_forced, legal
from stretto.engine.decide import NO_BRANCH, NO_DRAFT, Asked, Decision
from stretto.engine.request import Request
from stretto.engine.scheduler import Plan, Scheduler
from stretto.runner.runner import Step

if TYPE_CHECKING:
    from torch import Tensor

_LOOK_AHEAD = 31  # tokens that a lookup has ready


@dataclass(slots=True)
class DraftStats:
    """Counters since the engine started. accepted_at[d]: drafts whose token at depth d + 1 was accepted."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    accepted_at: list[int] = field(default_factory=list)

    def add(self, draft: Draft, verdict: Verdict) -> None:
        """Count one round of one request."""
        self.rounds += bool(len(draft))
        self.drafted += len(draft)
        self.accepted += len(verdict.path)
        self.emitted += len(verdict.emitted)
        self.accepted_at += [0] * (len(verdict.path) - len(self.accepted_at))
        for depth in range(len(verdict.path)):
            self.accepted_at[depth] += 1


class Drafting:
    """drafter: None = nothing is drafted. can: of the model and the judge together: what they can verify. vocab_size:
    tokens from here on do not exist."""

    def __init__(self, drafter: Drafter | None, can: Can, vocab_size: int) -> None:
        self.drafter, self.can, self._vocab_size = drafter, can, vocab_size
        self.needs = drafter.needs if drafter is not None else Needs()
        self.stats = DraftStats()
        self._known: set[int] = set()  # requests that the drafter knows
        self._ready: dict[int, Draft] = {}  # what a lookup has for the coming step

    @property
    def works(self) -> bool:
        """Whether drafts can be verified at all."""
        return self.drafter is not None and Can.CHAIN in self.can

    @property
    def extra(self) -> int:
        """Most rows per request that ride along: none where trees cannot be verified."""
        return self.needs.extra if Can.TREE in self.can else 0

    def begin(self, requests: Sequence[Request]) -> None:
        """These requests run in the coming step."""
        if self.drafter is not None:
            for request in requests:
                if request.rid not in self._known:
                    self.drafter.admit(request.rid, tuple(request.tokens))
                    self._known.add(request.rid)
                    if self.needs.rows and request.job.held:  # the cache had these
                        known = tuple(request.tokens[: request.job.held])
                        self.drafter.read([Piece(request.rid, 0, known)])

    def look(self, requests: Collection[Request]) -> None:
        """What a lookup has ready for requests that may decode in the coming step: the draft policy hears how likely
        it is to be accepted."""
        self._ready = {}
        if self.drafter is None or not self.drafter.is_lookup or not self.works:
            return
        asks = []
        for request in requests:
            request.job.acceptance = ()
            if request.rid in self._known and request.job.need == 1 and request.job.drafts:
                asks.append(_ask(request, min(_LOOK_AHEAD, request.remaining - 1)))
        known = {request.rid: request for request in requests}
        for ask, draft in zip(asks, self.drafter.propose(asks), strict=True):
            self._ready[ask.rid] = legal(self._verifiable(draft), known[ask.rid])
        for request in requests:
            if request.rid in self._ready:
                request.job.acceptance = self._ready[request.rid].acceptance or ()

    def propose(self, plan: Plan, requests: Mapping[int, Request], scheduler: Scheduler) -> dict[int, Asked]:
        """What is verified beside pending tokens, by request: within the budgets of the plan, and as far as there is
        memory. What a grammar forces comes first."""
        found = {}
        if Can.CHAIN in self.can:
            found = forced(plan, requests, scheduler, self._ready, self.extra, self._vocab_size)
        budgets = {rid: budget for rid, budget in plan.budgets.items() if rid not in found}
        if self.drafter is None or not budgets:
            return found
        asks = [_ask(requests[rid], budget) for rid, budget in budgets.items()]
        if all(ask.rid in self._ready and ask.max_tokens <= _LOOK_AHEAD for ask in asks):
            proposed = [self._ready[ask.rid].truncate(ask.max_tokens) for ask in asks]
        else:
            proposed = self.drafter.propose(asks)
        for ask, draft in zip(asks, proposed, strict=True):
            assert len(draft) <= ask.max_tokens, "a drafter keeps to what it was asked for"
            self._check(draft.tokens)
        proposed = [
            legal(self._verifiable(draft), requests[ask.rid]) for ask, draft in zip(asks, proposed, strict=True)
        ]
        drafts = [
            draft if not len(draft) or scheduler.grant(requests[ask.rid].job, len(draft)) else Draft()
            for ask, draft in zip(asks, proposed, strict=True)
        ]
        branches = self._branches(asks, drafts, requests, scheduler)
        self.drafter.prefetch([(ask.rid, draft) for ask, draft in zip(asks, drafts, strict=True)])
        return found | {
            ask.rid: Asked(requests[ask.rid], draft, branch)
            for ask, draft, branch in zip(asks, drafts, branches, strict=True)
        }

    def _check(self, tokens: Sequence[int]) -> None:
        """Native kernels look tokens up without asking whether they exist."""
        for token in tokens:
            assert 0 <= token < self._vocab_size, f"a drafter proposes token {token}, which does not exist"

    def _verifiable(self, draft: Draft) -> Draft:
        takes = Can.TREE if draft.probs is None else Can.TREE | Can.DRAWN_TREE
        return draft if takes in self.can else draft.chain()

    def _branches(
        self, asks: Sequence[Ask], drafts: Sequence[Draft], requests: Mapping[int, Request], scheduler: Scheduler
    ) -> list[Branch]:
        """Rows that ride along, where there is memory."""
        assert self.drafter is not None
        if not self.extra:
            return [NO_BRANCH] * len(asks)
        found = []
        for ask, draft, branch in zip(asks, drafts, self.drafter.extra(asks, drafts), strict=True):
            assert len(branch.tokens) <= self.extra, "a drafter keeps to what it asked for"
            self._check(branch.tokens)
            rows = len(draft) + len(branch.tokens)
            fits = rows < MAX_TREE_ROWS and scheduler.grant(requests[ask.rid].job, rows)
            found.append(branch if fits else NO_BRANCH)
        return found

    def read(self, step: Step, paths: Sequence[Sequence[int]], features: "Sequence[Tensor]") -> None:
        """These rows were committed. paths: as in `Runner.commit`."""
        if self.drafter is None or not (self.needs.rows or self.needs.features):
            return
        seqs, tokens, pieces = step.seqs, step.plan.token_ids, []
        for b, (rid, path) in enumerate(zip(step.rids, paths, strict=True)):
            first, definite = seqs.starts[b], seqs.definite[b]
            rows = [*range(first, first + definite), *(first + row for row in path)]
            own = tuple(h[rows] for h in features)
            pieces.append(Piece(rid, seqs.contexts[b], tuple(tokens[row] for row in rows), own))
        self.drafter.read([piece for piece in pieces if piece.rid in self._known])

    def read_ahead(self, rids: Sequence[int], contexts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """As `read`, for plain steps that ran as one: a row for each of a request's `tokens`."""
        if self.drafter is not None and self.needs.rows:
            self.drafter.read([Piece(*args) for args in zip(rids, contexts, map(tuple, tokens), strict=True)])

    def observe(self, asked: Sequence[Asked], decisions: Sequence[Decision]) -> None:
        """Verdicts of requests that go on; others are released in this step."""
        if self.drafter is None:
            return
        rounds = [
            _round(one, decision)
            for one, decision in zip(asked, decisions, strict=True)
            if decision.verdict.emitted and decision.failure is None
        ]
        for one in rounds:
            self.stats.add(one.draft, one.verdict)
        if rounds:
            self.drafter.observe(rounds)

    def forget(self, rid: int, *, keep: bool = False) -> None:
        """The drafter releases a request if it knows it. keep: its text is complete."""
        if self.drafter is not None and rid in self._known:
            self._known.discard(rid)
            self.drafter.release(rid, keep)

    def abandon(self) -> None:
        """Release all. The drafter may be what failed: others are released all the same."""
        for rid in list(self._known):
            with suppress(Exception):
                self.forget(rid)


def _round(one: Asked, decision: Decision) -> Round:
    """What its drafter hears. Tokens that a grammar forced are to it what plain steps gave that ran as one."""
    if not is_forced(one):
        return Round(one.request.rid, one.draft, decision.verdict, decision.picks, decision.top)
    picks = decision.picks[:1] if decision.picks is not None else None
    return Round(one.request.rid, NO_DRAFT, Verdict((), decision.verdict.emitted), picks)


def _ask(request: Request, max_tokens: int) -> Ask:
    return Ask(request.rid, max_tokens, request.sampling, request.noise, len(request.prompt))
