"""The middle of a step: what was scheduled and drafted is packed, run, judged and committed.

`run` is the plain loop; `run_ahead` does several plain steps as one, where nobody has to be asked in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stretto.core.drafter import Verdict
from stretto.core.judge import Judge
from stretto.core.policy import Record
from stretto.engine.decide import Asked, Decision, decide, emitted_logprobs
from stretto.engine.drafting import Drafting
from stretto.engine.request import Request, TokenLogprobs
from stretto.engine.scheduler import Plan
from stretto.runner.runner import Rows, Runner


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step decided, per request that was asked for a token. rows: committed, per scheduled request."""

    asked: Sequence[Asked]
    decisions: Sequence[Decision]
    logprobs: Sequence[Sequence[TokenLogprobs]]
    rows: Mapping[int, int]
    num_steps: int = 1

    def record(self, plan: Plan, seconds: float) -> Record:
        """What policies learn of it."""
        drafted = sum(len(one.draft) for one in self.asked)
        return Record(
            seconds=seconds,
            num_seqs=len(plan.shares),
            num_rows=sum(share.num_rows for share in plan.shares) + drafted,
            is_decode=plan.is_decode,
            drafted=drafted,
            emitted=sum(len(decision.verdict.emitted) for decision in self.decisions),
            num_steps=self.num_steps,
        )


def run(
    plan: Plan,
    requests: Mapping[int, Request],
    drafted: Mapping[int, Asked],
    runner: Runner,
    judge: Judge,
    drafting: Drafting,
) -> Outcome:
    """One step. drafted: what is verified beside pending tokens, by request."""
    parts, asked = list[Rows](), list[Asked]()
    for share in plan.shares:
        request = requests[share.job.rid]
        one = drafted.get(share.job.rid) or Asked(request)
        tokens = request.tokens[share.job.held : share.job.held + share.num_rows]
        parts.append(
            Rows(
                share.job.rid,
                (*tokens, *one.tokens),
                num_draft=len(one.tokens),
                tree=None if one.tree.is_chain else one.tree,
                is_step=share.is_decode,
                wants=len(one.tree) if share.is_last else 0,
                tags=request.tags,
            )
        )
        if share.is_last:
            asked.append(one)
    step = runner.pack(parts)
    outputs = runner.forward(step)
    decisions = decide(outputs.scores, asked, judge, drafting.needs)
    logprobs = emitted_logprobs(outputs.scores, asked, decisions)
    kept = {one.request.rid: decision.verdict.path for one, decision in zip(asked, decisions, strict=True)}
    paths = [kept.get(rid, ()) for rid in step.rids]
    runner.commit(step, paths)
    drafting.read(step, paths, outputs.features)
    rows = {share.job.rid: share.num_rows + len(kept.get(share.job.rid, ())) for share in plan.shares}
    return Outcome(asked, decisions, logprobs, rows)


def run_ahead(plan: Plan, requests: Mapping[int, Request], runner: Runner, drafting: Drafting) -> Outcome:
    """Several plain steps as one, fewer if a text ends in one of them. A request that failed did so in the last."""
    own = [requests[share.job.rid] for share in plan.shares]
    parts = [Rows(r.rid, r.tokens[-1:], wants=1) for r in own]
    how = [(r.sampling, r.noise, len(r.tokens)) for r in own]
    chosen, refused = runner.ahead(parts, how, [r.stop_ids for r in own], plan.num_steps)
    texts = list(zip(*chosen, strict=True))
    drafting.read_ahead(
        [r.rid for r in own],
        [r.job.held for r in own],
        [(r.tokens[-1], *text[:-1]) for r, text in zip(own, texts, strict=True)],
    )
    decisions = [
        Decision(Verdict((), text[:-1] if b in refused else text), refused.get(b)) for b, text in enumerate(texts)
    ]
    rows = dict.fromkeys((r.rid for r in own), len(chosen))
    return Outcome([Asked(r) for r in own], decisions, [()] * len(own), rows, len(chosen))
