"""Running a plan: one step with drafts, or several plain ones in a row. The two stand side by side: what the second
leaves out is why it is faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stretto.core.drafter import Verdict
from stretto.core.judge import Judge
from stretto.core.policy import Record
from stretto.engine.constrained import is_forced
from stretto.engine.decide import Asked, Decision, decide, emitted_logprobs
from stretto.engine.drafting import Drafting
from stretto.engine.prompts import read_prompts, rows_to_read
from stretto.engine.request import Request, TokenLogprobs
from stretto.engine.scheduler import Plan, Scheduler, Share, served
from stretto.runner.runner import Rows, Runner


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan came to, per request that was asked for a token. rows: committed, by request. embedded: requests
    whose prompt was read, which is all that they ask for."""

    asked: Sequence[Asked]
    decisions: Sequence[Decision]
    logprobs: Sequence[Sequence[TokenLogprobs]]
    rows: Mapping[int, int]
    num_steps: int = 1
    embedded: Sequence[Request] = ()

    def record(self, plan: Plan, seconds: float) -> Record:
        """What policies learn of it."""
        drafted = sum(len(one.draft) for one in self.asked)
        emitted = {
            one.request.rid: len(decision.verdict.emitted)
            for one, decision in zip(self.asked, self.decisions, strict=True)
        }
        return Record(
            seconds=seconds,
            num_seqs=len(plan.shares),
            num_rows=sum(share.num_rows for share in plan.shares) + drafted,
            is_decode=plan.is_decode and not any(map(is_forced, self.asked)),  # nothing is learned of such a step
            drafted=drafted,
            emitted=sum(emitted.values()),
            num_steps=self.num_steps,
            rounds=tuple(
                (one.request.rid, len(one.draft), tuple(decision.verdict.path))
                for one, decision in zip(self.asked, self.decisions, strict=True)
                if len(one.draft) and not is_forced(one)
            ),
            contexts=plan.contexts,
            pairs=plan.pairs,
            served=served(plan, emitted),
        )


def run_one(
    plan: Plan, requests: Mapping[int, Request], runner: Runner, drafting: Drafting, scheduler: Scheduler, judge: Judge
) -> Outcome:
    """propose -> pack -> forward -> judge -> commit -> read."""
    drafted = drafting.propose(plan, requests, scheduler)
    verified = [drafted.get(share.job.rid) or Asked(requests[share.job.rid]) for share in plan.shares]
    parts = [_rows(share, one) for share, one in zip(plan.shares, verified, strict=True)]
    step = runner.pack(parts)
    outputs = runner.forward(step)
    read_prompts(outputs, plan.shares, requests, sum(part.wants for part in parts))
    ready = [one for share, one in zip(plan.shares, verified, strict=True) if share.is_last]
    asked = [one for one in ready if one.request.pool is None]
    decisions = decide(outputs.scores, asked, judge, drafting.needs)
    logprobs = emitted_logprobs(outputs.scores, asked, decisions)
    kept = {one.request.rid: decision.verdict.path for one, decision in zip(asked, decisions, strict=True)}
    paths = [kept.get(rid, ()) for rid in step.rids]
    runner.commit(step, paths)
    drafting.read(step, paths, outputs.features)
    for share in plan.shares:
        if not share.is_last:
            scheduler.advance(share.job, share.num_rows, 0)
    rows = {s.job.rid: s.num_rows + len(kept.get(s.job.rid, ())) for s in plan.shares if s.is_last}
    embedded = [one.request for one in ready if one.request.pool is not None]
    return Outcome(asked, decisions, logprobs, rows, embedded=embedded)


def _rows(share: Share, one: Asked) -> Rows:
    """The rows of a request in a step: a piece of its tokens, and what is verified behind it."""
    tokens = one.request.tokens[share.job.held : share.job.held + share.num_rows]
    return Rows(
        share.job.rid,
        (*tokens, *one.tokens),
        num_draft=len(one.tokens),
        tree=None if one.tree.is_chain else one.tree,
        is_step=share.is_decode,
        wants=len(one.tree) if share.is_last and one.request.pool is None else 0,
        scored=rows_to_read(share, one.request),
        tags=one.request.tags,
    )


def run_ahead(
    plan: Plan, requests: Mapping[int, Request], runner: Runner, drafting: Drafting, scheduler: Scheduler, judge: Judge
) -> Outcome:
    """Several plain steps as one, fewer if a text ends in one of them; nobody is asked in between. A request that
    failed did so in the last."""
    running = [requests[share.job.rid] for share in plan.shares]
    held, pending = [r.job.held for r in running], [r.tokens[-1] for r in running]
    parts = [Rows(r.rid, (token,), wants=1, tags=r.tags) for r, token in zip(running, pending, strict=True)]
    how = [(r.sampling, r.noise, len(r.tokens)) for r in running]
    chosen, refused = runner.ahead(parts, how, [r.stop_ids for r in running], plan.num_steps)
    texts = list(zip(*chosen, strict=True))
    read = [(token, *text[:-1]) for token, text in zip(pending, texts, strict=True)]
    drafting.read_ahead([r.rid for r in running], held, read)
    decisions = [
        Decision(Verdict((), text[:-1] if b in refused else text), refused.get(b)) for b, text in enumerate(texts)
    ]
    rows = {r.rid: len(chosen) for r in running}
    return Outcome([Asked(r) for r in running], decisions, [()] * len(running), rows, len(chosen))
