"""From hidden states to verdicts: sampling parameters of every row, the head, the judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stretto.core.drafter import Draft, Verdict
from stretto.core.judge import Judge
from stretto.engine.request import Request, TokenLogprobs
from stretto.kernels.native.library import Pool
from stretto.kernels.sampling import RowSampling, logprobs, picks, probs


@dataclass(frozen=True, slots=True)
class Scores:
    """What the head says about every row. logits: [R, W] fp32 or wider. top, argmax: per row, if they are known
    already, its largest logit (NaN if there is one) and the lowest id that has it. threads: who draws tokens, if
    native ones shall."""

    logits: Tensor
    top: list[float] | None = None
    argmax: list[int] | None = None
    threads: Pool | None = None

    def at(self, index: Sequence[int]) -> "Scores":
        """Some of the rows."""
        if len(index) == len(self.logits):
            return self
        top = None if self.top is None else [self.top[i] for i in index]
        argmax = None if self.argmax is None else [self.argmax[i] for i in index]
        return Scores(self.logits[torch.tensor(index)], top, argmax, self.threads)


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
    starts = [0]
    for r in rows:
        starts.append(starts[-1] + len(r))
    spans = [range(first, last) for first, last in pairwise(starts)]
    verdicts: dict[int, Verdict] = {}
    for head in ("picks", "probs"):
        which = [i for i, judge in enumerate(judges) if judge.head == head]
        if not which:
            continue
        index = [row for i in which for row in spans[i]]
        own, how = scores.at(index), [sampling for i in which for sampling in rows[i]]
        if head == "picks":
            best = None if own.top is None or own.argmax is None else (own.top, own.argmax)
            results = picks(own.logits, how, best, own.threads)
        else:
            results = probs(own.logits, how)
        for i, part in zip(which, torch.split(results, [len(rows[i]) for i in which]), strict=True):
            request, draft = batch[i].request, batch[i].draft
            verdicts[i] = judges[i].judge(draft, part, len(request.tokens), request.noise)
    return [verdicts[i] for i in range(len(batch))]


def emitted_logprobs(logits: Tensor, batch: Sequence[Asked], verdicts: Sequence[Verdict]) -> list[list[TokenLogprobs]]:
    """Per request, log-probabilities of every emitted token (empty where they were not asked for)."""
    found: list[list[TokenLogprobs]] = []
    first = 0
    for asked, verdict in zip(batch, verdicts, strict=True):
        k = asked.request.sampling.logprobs
        own: list[TokenLogprobs] = []
        if k is not None:
            rows = torch.tensor([first, *(first + 1 + node for node in verdict.path)])
            result = logprobs(logits[rows], torch.tensor(verdict.emitted), k)
            for chosen, ids, values in zip(*(t.tolist() for t in result), strict=True):
                own.append(TokenLogprobs(chosen, dict(zip(ids, values, strict=True))))
        found.append(own)
        first += 1 + len(asked.draft)
    return found
