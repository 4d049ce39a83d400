"""From hidden states to verdicts: sampling parameters of every row, the head, the judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from stretto.core.drafter import Draft, Verdict
from stretto.core.judge import Judge
from stretto.engine.request import Request, TokenLogprobs
from stretto.kernels.native.library import Pool
from stretto.kernels.sampling import RowSampling, greedy, logprobs, picks, probs


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
        threads: Pool | None = None,
    ) -> None:
        self._logits, self.top, self.argmax, self.threads = logits, top, argmax, threads

    @cached_property
    def logits(self) -> Tensor:
        """[R, W]."""
        return self._logits()

    def picks(self, rows: Sequence[RowSampling], index: Sequence[int]) -> list[int]:
        """The token that plain decoding emits after each row of `index`, sampled as `rows` say."""
        if self.top is None or self.argmax is None:
            return picks(self._at(index), rows)
        known = [self.top[i] for i in index], [self.argmax[i] for i in index]
        if all(row.is_plain for row in rows):
            return greedy(*known)
        return picks(self._at(index), rows, known, self.threads)

    def probs(self, rows: Sequence[RowSampling], index: Sequence[int]) -> Tensor:
        """[len(index), W] fp32: the law of the token after each row of `index`."""
        return probs(self._at(index), rows)

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


def decide(scores: Scores, batch: Sequence[Asked], judge_for: Callable[[Request], Judge]) -> list[Verdict]:
    """One verdict per request. scores: for each request the pending row and then its nodes, in order."""
    rows = [row_samplings(asked) for asked in batch]
    judges = [judge_for(asked.request) for asked in batch]
    starts = [0, *accumulate(map(len, rows))]
    verdicts: dict[int, Verdict] = {}
    for head in ("picks", "probs"):
        which = [i for i, judge in enumerate(judges) if judge.head == head]
        if not which:
            continue
        index = [row for i in which for row in range(starts[i], starts[i + 1])]
        how = [sampling for i in which for sampling in rows[i]]
        results = scores.picks(how, index) if head == "picks" else scores.probs(how, index)
        first = 0
        for i in which:
            request, last = batch[i].request, first + len(rows[i])
            part = results[first:last]
            verdicts[i] = judges[i].judge(batch[i].draft, part, len(request.tokens), request.noise)
            first = last
    return [verdicts[i] for i in range(len(batch))]


def emitted_logprobs(scores: Scores, batch: Sequence[Asked], verdicts: Sequence[Verdict]) -> list[list[TokenLogprobs]]:
    """Per request, log-probabilities of every emitted token (empty where they were not asked for)."""
    found: list[list[TokenLogprobs]] = []
    first = 0
    for asked, verdict in zip(batch, verdicts, strict=True):
        k = asked.request.sampling.logprobs
        own: list[TokenLogprobs] = []
        if k is not None:
            rows = torch.tensor([first, *(first + 1 + node for node in verdict.path)])
            result = logprobs(scores.logits[rows], torch.tensor(verdict.emitted), k)
            for chosen, ids, values in zip(*(t.tolist() for t in result), strict=True):
                own.append(TokenLogprobs(chosen, dict(zip(ids, values, strict=True))))
        found.append(own)
        first += 1 + len(asked.draft)
    return found
