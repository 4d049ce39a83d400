"""From logits to a law, and from a law to a token.

Order: logit_bias, penalties, mask, temperature, top_k, top_p, min_p, draw. Ties go to the lower id everywhere. The
draw is Gumbel-max with noise of the row's absolute position, so it depends on (seed, position, law) and nothing else:

    token = argmax over survivors of (processed logit + gumbel)

Arithmetic is fp32 (fp64 for fp64 logits); masses are summed in fp64.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from stretto.core.errors import RunError, UserError
from stretto.core.sampling import Noise, Sampling
from stretto.core.scores import Scores
from stretto.kernels.native.library import Team
from stretto.kernels.sampling import native
from stretto.kernels.sampling.noise import Purpose, gumbel, gumbel_of_rows

_T = TypeVar("_T")
_FIRST_LOOK = (256, 4096, 16384)  # top_p sorts so many of the likeliest tokens before it sorts all


@dataclass(frozen=True, slots=True, eq=False)
class RowSampling:
    """How the token after one row is chosen: built by the engine for every row of every step.

    sampling: resolved (`Sampling.resolve`). noise, position: the stream, and the absolute position of the token to
    choose. prompt, output, path: the tokens before it; `path` holds draft tokens between `output` and this row.
    banned: ids that may not be chosen (end of text before `min_tokens`). allowed: [W] bool, a grammar's mask.
    """

    sampling: Sampling
    noise: Noise
    position: int
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    path: Sequence[int] = ()
    banned: Sequence[int] = ()
    allowed: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the choice is the argmax of the raw logits."""
        return self.sampling.temperature == 0 and not self.is_adjusted

    @property
    def is_adjusted(self) -> bool:
        """Whether bias, penalties or masks change the logits."""
        s = self.sampling
        return bool(s.logit_bias or self.banned) or self.allowed is not None or s.has_penalties


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """What is left of one row: processed logits [n] of the survivors `ids` [n] int64 ascending; None = all [W]."""

    logits: Tensor
    ids: Tensor | None

    def probs(self, vocab: int) -> Tensor:
        """[vocab]: the law, summing to 1."""
        p = self.logits.softmax(0)
        return p if self.ids is None else p.new_zeros(vocab).index_copy_(0, self.ids, p)


Refusals = dict[int, UserError]
"""Rows that give no token, by number, each with the error it would raise alone."""


class Logprobs(NamedTuple):
    """Of the model's own law (raw logits): the chosen token's, and the k likeliest tokens, likeliest first."""

    chosen: Tensor  # [R] fp32
    ids: Tensor  # [R, k] int64
    values: Tensor  # [R, k] fp32


def process(logits: Tensor, row: RowSampling) -> Law:
    """The law of one row of logits [W]. Raises UserError if no token is allowed, RunError for NaN or +inf."""
    x = _adjust(_wide(logits), row) if row.is_adjusted else _wide(logits)
    best, token = x.max(dim=0)
    if not math.isfinite(top := best.item()):
        raise _refusal(top)
    s = row.sampling
    assert s.temperature is not None and s.top_p is not None and s.top_k is not None and s.min_p is not None, "resolved"
    if s.temperature == 0:
        return Law(x.new_zeros(1), token.view(1))
    # The largest logit becomes 0 first, so that no temperature, however small, can overflow.
    x = (x - best) / max(s.temperature, torch.finfo(x.dtype).tiny)
    ids: Tensor | None = None
    if 0 < s.top_k < len(x):
        ids = _likeliest(x, s.top_k)
        if len(ids) > s.top_k:  # equal logits at the edge: the lowest ids stay
            at_edge = x[ids] == x[ids].min()
            surplus = at_edge.cumsum(0) > int(at_edge.sum()) - (len(ids) - s.top_k)
            ids = ids[~(at_edge & surplus)]
        x = x[ids]
    if s.top_p < 1:
        kept = _nucleus(x, s.top_p)
        ids, x = kept if ids is None else ids[kept], x[kept]
    if s.min_p > 0:
        kept = (x >= math.log(s.min_p)).nonzero().squeeze(1)
        ids, x = kept if ids is None else ids[kept], x[kept]
    return Law(x, ids)


def picks(
    logits: Tensor,
    rows: Sequence[RowSampling],
    known: tuple[Sequence[float], Sequence[int]] | None = None,
    threads: Team | None = None,
) -> list[int]:
    """The token plain decoding emits after every row of `logits` [R, W].

    Temperature 0: the argmax, lowest id on a tie. Otherwise the Gumbel-max draw at the row's absolute position.
    known: the largest logit of every row and its lowest id, where the head has found them. threads: native ones, if
    they shall draw (from fp32 logits on the CPU). Raises UserError if a row allows no token, RunError if a logit is
    NaN or +inf.
    """
    return _all(*try_picks(logits, rows, known, threads))


def try_picks(
    logits: Tensor,
    rows: Sequence[RowSampling],
    known: tuple[Sequence[float], Sequence[int]] | None = None,
    threads: Team | None = None,
) -> tuple[list[int], Refusals]:
    """`picks` where a row without a token costs no other row its own; what stands in its place means nothing."""
    assert len(logits) == len(rows)
    x = _wide(logits)
    if known is None:
        top, argmax = x.max(dim=1)
        known = top.tolist(), argmax.tolist()
    chosen, refused = list(known[1]), refusals(known[0])  # NaN is refused wherever it stands, at a banned token too
    drawn = [r for r, row in enumerate(rows) if not (row.is_plain or r in refused)]
    if drawn:
        draw = _draw_in_torch if threads is None else partial(_draw_natively, threads=threads)
        tokens, more = draw([x[r] for r in drawn], [rows[r] for r in drawn], [chosen[r] for r in drawn])
        for r, token in zip(drawn, tokens, strict=True):
            chosen[r] = token
        for i, why in more.items():
            refused[drawn[i]] = why
    return chosen, refused


def score_picks(scores: Scores, rows: Sequence[RowSampling], index: Sequence[int]) -> tuple[list[int], Refusals]:
    """The token that plain decoding emits after each row of `index`, sampled as `rows` say (`try_picks`)."""
    if scores.top is None or scores.argmax is None:
        return try_picks(_rows(scores, index), rows)
    top, argmax = [scores.top[i] for i in index], [scores.argmax[i] for i in index]
    if all(row.is_plain for row in rows):
        return argmax, refusals(top)
    return try_picks(_rows(scores, index), rows, (top, argmax), scores.threads)


def score_probs(scores: Scores, rows: Sequence[RowSampling], index: Sequence[int]) -> tuple[Tensor, Refusals]:
    """[len(index), W] fp32: the law of the token after each row of `index` (`try_probs`)."""
    return try_probs(_rows(scores, index), rows)


def _rows(scores: Scores, index: Sequence[int]) -> Tensor:
    return scores.logits if len(index) == len(scores.logits) else scores.logits[torch.tensor(index)]


def refusals(top: Sequence[float]) -> Refusals:
    """Which of the rows with these largest logits (`max` hands NaN on) give no token."""
    if all(map(math.isfinite, top)):
        return {}
    return {r: _refusal(value) for r, value in enumerate(top) if not math.isfinite(value)}


def _draw_natively(
    xs: Sequence[Tensor], rows: Sequence[RowSampling], argmax: Sequence[int], threads: Team
) -> tuple[list[int], Refusals]:
    xs, argmax, refused = list(xs), list(argmax), Refusals()
    for r, row in enumerate(rows):
        if row.is_adjusted:
            try:
                xs[r], argmax[r] = _adjusted(xs[r], row)
            except UserError as why:
                refused[r] = why  # it is drawn as it was, for nothing
    return native.choose(xs, argmax, [(row.sampling, row.noise, row.position) for row in rows], threads), refused


def _draw_in_torch(
    xs: Sequence[Tensor], rows: Sequence[RowSampling], argmax: Sequence[int]
) -> tuple[list[int], Refusals]:
    chosen, refused = list(argmax), Refusals()
    few: list[int] = []
    laws: list[Tensor] = []
    survivors: list[Tensor] = []
    for r, (x, row) in enumerate(zip(xs, rows, strict=True)):
        try:
            law = process(x, row)
        except UserError as why:
            refused[r] = why
            continue
        if law.ids is None or 4 * len(law.ids) > len(x):  # a block of noise serves four tokens
            noise = gumbel(row.noise, row.position, Purpose.TOKEN, range(len(x))).to(x.device)
            at = (law.logits + (noise if law.ids is None else noise[law.ids])).argmax()
            chosen[r] = int(at if law.ids is None else law.ids[at])
        elif len(law.ids) == 1:
            chosen[r] = int(law.ids[0])
        else:
            few.append(r)
            laws.append(law.logits)
            survivors.append(law.ids)
    if few:
        noises, positions = [rows[r].noise for r in few], [rows[r].position for r in few]
        drawn = gumbel_of_rows(noises, positions, Purpose.TOKEN, survivors)
        for r, law_logits, ids, noise in zip(few, laws, survivors, drawn, strict=True):
            chosen[r] = int(ids[(law_logits + noise.to(xs[0].device)).argmax()])
    return chosen, refused


def probs(logits: Tensor, rows: Sequence[RowSampling]) -> Tensor:
    """[R, W] fp32 (fp64 for fp64): the law of the token after every row; greedy rows are point masses."""
    return _all(*try_probs(logits, rows))


def try_probs(logits: Tensor, rows: Sequence[RowSampling]) -> tuple[Tensor, Refusals]:
    """`probs` where a row without a token costs no other row its law; the law that stands in its place is token 0."""
    assert len(logits) == len(rows)
    x, laws, refused = _wide(logits), list[Tensor](), Refusals()
    for r, row in enumerate(rows):
        try:
            law = process(x[r], row)
        except UserError as why:
            refused[r] = why
            law = Law(x.new_zeros(1), torch.zeros(1, dtype=torch.int64, device=x.device))
        laws.append(law.probs(x.shape[1]))
    return torch.stack(laws) if laws else x, refused


def logprobs(logits: Tensor, chosen: Tensor, k: int) -> Logprobs:
    """Log-probabilities before any processing: of `chosen` [R] int64 and of the k likeliest tokens of every row."""
    x = _wide(logits)
    _all(x, refusals(x.max(dim=1).values.tolist()))
    x = x.log_softmax(dim=1)
    k = min(k, x.shape[1])
    ids = torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    for r, row in enumerate(x if k else ()):
        found = _likeliest(row, k)
        if len(found) < k:  # fewer than k tokens have a probability
            found = torch.arange(len(row), device=x.device)
        ids[r] = found[row[found].sort(descending=True, stable=True).indices[:k]]
    return Logprobs(x.gather(1, chosen[:, None]).squeeze(1), ids, x.gather(1, ids))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _all(found: _T, refused: Refusals) -> _T:
    """`found` if every row is in it; else the error of the first that is not."""
    if refused:
        raise refused[min(refused)]
    return found


def _refusal(top: float) -> UserError:
    """Why a row whose largest logit is `top` gives no token."""
    if top == -math.inf:
        return UserError("no token is allowed", why="bans, the grammar and the model's own mask exclude every token")
    return RunError(
        f"a logit is {'NaN' if math.isnan(top) else 'infinite'}",
        why="the model's arithmetic overflowed, or its weights are damaged",
    )


def _adjusted(x: Tensor, row: RowSampling) -> tuple[Tensor, int]:
    """One row [W] with bias, penalties and masks, and the lowest id of its largest logit. Raises as `process`."""
    x = _adjust(x, row)
    best, at = x.max(dim=0)
    if not math.isfinite(top := best.item()):
        raise _refusal(top)
    return x, int(at)


def _adjust(x: Tensor, row: RowSampling) -> Tensor:
    """Bias, penalties and masks, on a copy of one row [W]."""
    s, x = row.sampling, x.clone()
    _check_ids(s.logit_bias, len(x))
    _check_ids(row.banned, len(x))
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=x.device)
        x[ids] += torch.tensor(list(s.logit_bias.values()), dtype=x.dtype, device=x.device)
    if s.has_penalties:
        counts = Counter(row.output)
        counts.update(row.path)
        repetition = 1.0 if s.repetition_penalty is None else s.repetition_penalty
        if repetition != 1.0 and (seen := {*row.prompt, *counts}):
            ids = torch.tensor(sorted(seen), device=x.device)
            held = x[ids]
            x[ids] = torch.where(held > 0, held / repetition, held * repetition)
        if counts and (s.frequency_penalty or s.presence_penalty):
            ids = torch.tensor(list(counts), device=x.device)
            times = torch.tensor(list(counts.values()), dtype=x.dtype, device=x.device)
            x[ids] -= s.frequency_penalty * times + s.presence_penalty
    if row.allowed is not None:
        x.masked_fill_(~row.allowed, -math.inf)
    if row.banned:
        x[list(row.banned)] = -math.inf
    return x


def _check_ids(ids: Iterable[int], vocab: int) -> None:
    for token in ids:
        if not 0 <= token < vocab:
            raise UserError(f"token id {token} does not exist", why=f"the vocabulary has {vocab} tokens")


def _likeliest(x: Tensor, n: int) -> Tensor:
    """Ascending ids of the n largest finite values [W], and of all values equal to the smallest of them."""
    if n >= len(x):
        return (x > -math.inf).nonzero().squeeze(1)
    edge = x.topk(n, sorted=False).values.min()
    return ((x >= edge) & (x > -math.inf)).nonzero().squeeze(1)


def _nucleus(x: Tensor, top_p: float) -> Tensor:
    """Ascending indices of the fewest likeliest tokens whose mass reaches `top_p`; at least one."""
    log_total = x.logsumexp(0)
    for size in (*_FIRST_LOOK, len(x)):
        ids = _likeliest(x, size)  # closed under ties, so its order is the beginning of the whole order
        values, order = x[ids].sort(descending=True, stable=True)
        mass = (values - log_total).exp().double()
        through = mass.cumsum(0)
        if through[-1] >= top_p or size >= len(x):
            break
    kept = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept[ids[order[through - mass < top_p]]] = True
    return kept.nonzero().squeeze(1)
