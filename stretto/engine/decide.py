"""From scores to verdicts: how the token after every row is chosen, and what the judge keeps of a draft."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from stretto.core.drafter import Branch, Draft, Needs, Verdict
from stretto.core.errors import UserError
from stretto.core.judge import Judge
from stretto.core.scores import Scores
from stretto.core.tree import Tree
from stretto.engine.request import Request, TokenLogprobs
from stretto.kernels.sampling import RowSampling, score_logprobs, score_picks, score_probs

NOTHING = Verdict((), ())
NO_DRAFT, NO_BRANCH = Draft(), Branch((), ())


@dataclass(frozen=True, slots=True)
class Asked:
    """One request whose next token this step decides, with the draft that was verified and what rode along."""

    request: Request
    draft: Draft = NO_DRAFT
    branch: Branch = NO_BRANCH

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of rows 1, 2, ...: the draft's, then the branch's."""
        return (*self.draft.tokens, *self.branch.tokens)

    @property
    def tree(self) -> Tree:
        """All rows; the draft's have the numbers that they have there."""
        return self.draft.tree.grafted(self.branch.parents) if self.branch.tokens else self.draft.tree


@dataclass(frozen=True, slots=True)
class Decision:
    """verdict: NOTHING where no token follows. failure: why not; it ends the request and no other. picks, top: see
    `stretto.core.drafter.Round`."""

    verdict: Verdict = NOTHING
    failure: UserError | None = None
    picks: tuple[int, ...] | None = None
    top: tuple[tuple[int, float], ...] = ()


def row_samplings(asked: Asked, masks: Sequence[bytes | None] | None = None) -> list[RowSampling]:
    """How the token after the pending row and after every row that follows it is chosen. masks: of its grammar, per
    row."""
    request, tokens = asked.request, asked.tokens
    paths = [tuple(tokens[row - 1] for row in path[1:]) for path in asked.tree.paths]
    return [
        RowSampling(
            sampling=request.sampling,
            noise=request.noise,
            position=len(request.tokens) + len(path),
            prompt=request.prompt,
            output=request.output,
            path=path,
            banned=request.banned(len(request.output) + len(path)),
            allowed=masks[row] if masks is not None else None,
        )
        for row, path in enumerate(paths)
    ]


def decide(scores: Scores, batch: Sequence[Asked], judge: Judge, needs: Needs) -> list[Decision]:
    """One decision per request.

    scores: for each request its rows, in order. needs: what the drafter wants to hear. A request fails when its pending
    row gives no token (NaN, everything banned), its grammar fails, or its judge refuses the draft. Drafts must not
    change that: a row that gives no token ends the accepted path before it, so that its token is the next pending one;
    and if the pending row gives none beside other rows, the request has NOTHING and has not failed: it is to be decided
    again alone, since in some kernels a hidden row can make NaN of those that do not see it (0 x NaN).
    """
    if not batch:
        return []
    masks, failed = grammar_masks(batch)
    rows = [row_samplings(asked, masks.get(n)) for n, asked in enumerate(batch)]
    starts = [0, *accumulate(map(len, rows))]
    how, index = [row for own in rows for row in own], range(starts[-1])
    choose = score_picks if judge.head == "picks" else score_probs
    results, refused = choose(scores, how, index)
    picks = None
    if needs.picks:
        picks = results if judge.head == "picks" else score_picks(scores, how, index)[0]
    found: list[Decision] = []
    for n, (asked, first, end) in enumerate(zip(batch, starts, starts[1:], strict=False)):
        last, own = first + 1 + len(asked.draft), {row - first for row in refused if first <= row < end}
        decision = Decision(picks=tuple(picks[first:end]) if picks is not None else None)
        if n in failed:
            decision = Decision(failure=failed[n])
        elif 0 not in own:
            decision = _judged(judge, asked, results[first:last], decision, own)
        elif end - first == 1:
            decision = Decision(failure=refused[first])
        if needs.top and len(decision.verdict.emitted) and _ended_early(asked.draft, decision.verdict):
            decision = _with_top(decision, scores, first, needs.top)
        found.append(decision)
    return found


def grammar_masks(batch: Sequence[Asked]) -> tuple[dict[int, list[bytes | None]], dict[int, UserError]]:
    """By number in the batch: of requests with a grammar the mask of every row, or why theirs cannot go on."""
    masks, failed = dict[int, list[bytes | None]](), dict[int, UserError]()
    for n, asked in enumerate(batch):
        if asked.request.matcher is not None:
            try:
                masks[n] = asked.request.matcher.masks(asked.tokens, asked.tree)
            except UserError as why:
                failed[n] = why
    return masks, failed


def _judged(judge: Judge, asked: Asked, results: object, decision: Decision, refused: set[int]) -> Decision:
    request = asked.request
    try:
        verdict = judge.judge(asked.draft, results, len(request.tokens), request.noise)
    except UserError as why:
        return Decision(failure=why)
    # Nothing behind the end of a text is committed: what is cached is what plain decoding leaves.
    stops = request.stop_ids
    ends = (row in refused or token in stops for row, token in zip(verdict.path, verdict.emitted, strict=False))
    cut = next((n for n, is_end in enumerate(ends) if is_end), None)
    if cut is not None:
        verdict = Verdict(verdict.path[:cut], verdict.emitted[: cut + 1])
    return Decision(verdict, picks=decision.picks)


def _ended_early(draft: Draft, verdict: Verdict) -> bool:
    """Whether the draft went on where the verdict ends."""
    return bool(draft.tree.children[verdict.path[-1] if verdict.path else 0])


def _with_top(decision: Decision, scores: Scores, first: int, count: int) -> Decision:
    row = first + (decision.verdict.path[-1] if decision.verdict.path else 0)
    ((_, top),) = score_logprobs(scores, [row], decision.verdict.emitted[-1:], count)
    return Decision(decision.verdict, picks=decision.picks, top=tuple(top.items()))


def emitted_logprobs(
    scores: Scores, batch: Sequence[Asked], decisions: Sequence[Decision]
) -> list[list[TokenLogprobs]]:
    """Per request, log-probabilities of every emitted token (empty where they were not asked for, or it failed)."""
    found: list[list[TokenLogprobs]] = []
    first = 0
    for asked, verdict in zip(batch, (decision.verdict for decision in decisions), strict=True):
        k = asked.request.sampling.logprobs
        own: list[TokenLogprobs] = []
        if k is not None and verdict.emitted:
            rows = [first, *(first + row for row in verdict.path)]
            own = [TokenLogprobs(*found) for found in score_logprobs(scores, rows, verdict.emitted, k)]
        found.append(own)
        first += 1 + len(asked.tokens)
    return found
