"""From hidden states to verdicts: sampling parameters of every row, the head, the judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from stretto.core.drafter import Draft, Verdict
from stretto.core.errors import UserError
from stretto.core.judge import Judge
from stretto.engine.request import Request, TokenLogprobs
from stretto.kernels.native.library import Team
from stretto.kernels.sampling import Refusals, RowSampling, logprobs, refusals, try_picks, try_probs


class Scores:
    """What the head says about every row.

    logits: computes or finds [R, W] fp32 or wider; asked once, and only if somebody needs them. top, argmax: per row,
    if they are known already, its largest logit (NaN if there is one) and the lowest id that has it. threads: who
    draws tokens, if native ones shall.
    """

    def __init__(
        self,
        logits: Callable[[], Tensor],
        top: Sequence[float] | None = None,
        argmax: Sequence[int] | None = None,
        threads: Team | None = None,
    ) -> None:
        self._logits, self.top, self.argmax, self.threads = logits, top, argmax, threads

    @cached_property
    def logits(self) -> Tensor:
        """[R, W]."""
        return self._logits()

    def picks(self, rows: Sequence[RowSampling], index: Sequence[int]) -> tuple[list[int], Refusals]:
        """The token that plain decoding emits after each row of `index`, sampled as `rows` say (`try_picks`)."""
        if self.top is None or self.argmax is None:
            return try_picks(self._at(index), rows)
        top, argmax = [self.top[i] for i in index], [self.argmax[i] for i in index]
        if all(row.is_plain for row in rows):
            return argmax, refusals(top)
        return try_picks(self._at(index), rows, (top, argmax), self.threads)

    def probs(self, rows: Sequence[RowSampling], index: Sequence[int]) -> tuple[Tensor, Refusals]:
        """[len(index), W] fp32: the law of the token after each row of `index` (`try_probs`)."""
        return try_probs(self._at(index), rows)

    def _at(self, index: Sequence[int]) -> Tensor:
        return self.logits if len(index) == len(self.logits) else self.logits[torch.tensor(index)]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request whose next token this step decides, with the draft that was verified."""

    request: Request
    draft: Draft


def row_samplings(asked: Asked) -> list[RowSampling]:
    """How the token after the pending row and after every node of the draft is chosen."""
    request, draft = asked.request, asked.draft
    paths: list[tuple[int, ...]] = [()]
    for node, token in enumerate(draft.tokens):
        parent = node - 1 if draft.parents is None else draft.parents[node]
        paths.append((*paths[parent + 1], token))
    return [
        RowSampling(
            sampling=request.sampling,
            noise=request.noise,
            position=len(request.tokens) + len(path),
            prompt=request.prompt,
            output=request.output,
            path=path,
            banned=request.banned(len(request.output) + len(path)),
        )
        for path in paths
    ]


NOTHING = Verdict((), ())
Failures = dict[int, UserError]
"""By request id: why no token follows. It ends that request and no other."""


def decide(
    scores: Scores, batch: Sequence[Asked], judge_for: Callable[[Request], Judge]
) -> tuple[list[Verdict], Failures]:
    """One verdict per request, and which of them failed.

    scores: for each request the pending row and then its nodes, in order. A request fails when its pending row gives no
    token (NaN, everything banned) or its judge refuses the draft. Drafts must not change that: a node whose row gives
    none ends the accepted path before it, so that its token is the next pending one; and if the pending row gives none
    beside a draft, the request has NOTHING and has not failed: it is to be decided again without one, since in some
    kernels a hidden row can make NaN of those that do not see it (0 x NaN).
    """
    rows = [row_samplings(asked) for asked in batch]
    judges = [judge_for(asked.request) for asked in batch]
    starts = [0, *accumulate(map(len, rows))]
    verdicts: dict[int, Verdict] = {}
    failures: Failures = {}
    for head in ("picks", "probs"):
        which = [i for i, judge in enumerate(judges) if judge.head == head]
        if not which:
            continue
        index = [row for i in which for row in range(starts[i], starts[i + 1])]
        how = [sampling for i in which for sampling in rows[i]]
        results, refused = scores.picks(how, index) if head == "picks" else scores.probs(how, index)
        first = 0
        for i in which:
            request, last = batch[i].request, first + len(rows[i])
            verdicts[i] = NOTHING
            if first not in refused:
                try:
                    verdict = judges[i].judge(batch[i].draft, results[first:last], len(request.tokens), request.noise)
                    verdicts[i] = _before(verdict, [row - first - 1 for row in refused]) if refused else verdict
                except UserError as why:
                    failures[request.rid] = why
            elif not len(batch[i].draft):
                failures[request.rid] = refused[first]
            first = last
    return [verdicts[i] for i in range(len(batch))], failures


def _before(verdict: Verdict, refused: Sequence[int]) -> Verdict:
    """The verdict with its path cut before the first node of `refused`."""
    kept = next((n for n, node in enumerate(verdict.path) if node in refused), None)
    return verdict if kept is None else Verdict(verdict.path[:kept], verdict.emitted[: kept + 1])


def emitted_logprobs(scores: Scores, batch: Sequence[Asked], verdicts: Sequence[Verdict]) -> list[list[TokenLogprobs]]:
    """Per request, log-probabilities of every emitted token (empty where they were not asked for, or it failed)."""
    found: list[list[TokenLogprobs]] = []
    first = 0
    for asked, verdict in zip(batch, verdicts, strict=True):
        k = asked.request.sampling.logprobs
        own: list[TokenLogprobs] = []
        if k is not None and verdict.emitted:
            rows = torch.tensor([first, *(first + 1 + node for node in verdict.path)])
            result = logprobs(scores.logits[rows], torch.tensor(verdict.emitted), k)
            for chosen, ids, values in zip(*(t.tolist() for t in result), strict=True):
                own.append(TokenLogprobs(chosen, dict(zip(ids, values, strict=True))))
        found.append(own)
        first += 1 + len(asked.draft)
    return found
