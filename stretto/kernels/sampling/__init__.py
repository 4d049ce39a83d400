"""From logits to a token: laws, noise and draws.

Order: logit_bias, penalties, mask (rows.py), temperature, top_k, top_p, min_p (laws.py), draw. The draw is Gumbel-max
with noise of the row's absolute position, so it depends on (seed, position, law) and nothing else:

    token = argmax over survivors of (processed logit + gumbel)

Definitions are in reference.py; every backend gives its tokens. What reads scores of native threads imports no torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from stretto.core.sampling import Noise
from stretto.core.scores import Scores
from stretto.kernels.native.library import Team
from stretto.kernels.pick import Impl, pick
from stretto.kernels.sampling import native, reference
from stretto.kernels.sampling.reference import Purpose
from stretto.kernels.sampling.rows import Logprobs, Refusals, RowSampling, refusals

if TYPE_CHECKING:
    from torch import Tensor

    from stretto.kernels.sampling.laws import Law, process
    from stretto.kernels.sampling.noise import gumbel, uniform

__all__ = [
    "Law", "Logprobs", "Purpose", "Refusals", "RowSampling", "draw", "gumbel", "logprobs", "picks", "probs", "process",
    "refusals", "score_logprobs", "score_picks", "score_probs", "try_picks", "try_probs", "uniform",
]  # fmt: skip

_HOMES = {"Law": "laws", "process": "laws", "gumbel": "noise", "uniform": "noise"}
_T = TypeVar("_T")
_DRAWS: tuple[Impl, ...] = ("native", "torch", "reference")
_LAWS: tuple[Impl, ...] = ("torch", "reference")


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # with torch
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def draw(noise: Noise, position: int, purpose: Purpose) -> float:
    """One u in (0, 1): the draw of token 0."""
    return reference.uniform(noise, position, purpose, 0)


def picks(
    logits: "Tensor",
    rows: Sequence[RowSampling],
    known: tuple[Sequence[float], Sequence[int]] | None = None,
    threads: Team | None = None,
    *,
    impl: Impl = "auto",
) -> list[int]:
    """The token plain decoding emits after every row of `logits` [R, W].

    Temperature 0: the argmax, lowest id on a tie. Otherwise the Gumbel-max draw at the row's absolute position.
    known: the largest logit of every row and its lowest id, where the head has found them. threads: native ones, if
    they shall draw (from fp32 logits on the CPU). Raises UserError if a row allows no token, RunError if a logit is
    NaN or +inf.
    """
    return _all(*try_picks(logits, rows, known, threads, impl=impl))


def try_picks(
    logits: "Tensor",
    rows: Sequence[RowSampling],
    known: tuple[Sequence[float], Sequence[int]] | None = None,
    threads: Team | None = None,
    *,
    impl: Impl = "auto",
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
        choose = pick("sampling.choose", _DRAWS, impl, x, threads)
        tokens, more = choose([x[r] for r in drawn], [rows[r] for r in drawn], [chosen[r] for r in drawn], threads)
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
    held = scores.rows
    if not isinstance(held, native.LogitRows):
        return try_picks(_rows(scores, index), rows, (top, argmax))
    chosen, refused = argmax, refusals(top)
    drawn = [r for r, row in enumerate(rows) if not (row.is_plain or r in refused)]
    if drawn:
        own = [rows[r] for r in drawn], [chosen[r] for r in drawn]
        tokens, more = native.choose_at([held.at(index[r]) for r in drawn], held.width, *own, held.threads)
        for r, token in zip(drawn, tokens, strict=True):
            chosen[r] = token
        refused |= {drawn[i]: why for i, why in more.items()}
    return chosen, refused


def score_probs(scores: Scores, rows: Sequence[RowSampling], index: Sequence[int]) -> "tuple[Tensor, Refusals]":
    """[len(index), W] fp32: the law of the token after each row of `index` (`try_probs`)."""
    return try_probs(_rows(scores, index), rows)


def score_logprobs(
    scores: Scores, index: Sequence[int], chosen: Sequence[int], k: int
) -> list[tuple[float, dict[int, float]]]:
    """Log-probabilities before any processing, for each row of `index`: of its chosen token, and of the k likeliest by
    id, likeliest first."""
    held = scores.rows
    if isinstance(held, native.LogitRows):
        assert scores.top is not None
        _all(None, refusals([scores.top[i] for i in index]))
        return native.logprobs_at([held.at(i) for i in index], held.width, chosen, k, held.threads)
    import torch

    found = logprobs(_rows(scores, index), torch.tensor(chosen), k)
    tops = [dict(zip(ids, values, strict=True)) for ids, values in zip(*(t.tolist() for t in found[1:]), strict=True)]
    return list(zip(found.chosen.tolist(), tops, strict=True))


def probs(logits: "Tensor", rows: Sequence[RowSampling], *, impl: Impl = "auto") -> "Tensor":
    """[R, W] fp32 (fp64 for fp64): the law of the token after every row; greedy rows are point masses."""
    return _all(*try_probs(logits, rows, impl=impl))


def try_probs(logits: "Tensor", rows: Sequence[RowSampling], *, impl: Impl = "auto") -> "tuple[Tensor, Refusals]":
    """`probs` where a row without a token costs no other row its law; the law that stands in its place is token 0."""
    assert len(logits) == len(rows)
    x = _wide(logits)
    found: tuple[Tensor, Refusals] = pick("sampling.probs", _LAWS, impl, x, None)(x, rows)
    return found


def logprobs(logits: "Tensor", chosen: "Tensor", k: int, *, impl: Impl = "auto") -> Logprobs:
    """Log-probabilities before any processing: of `chosen` [R] int64 and of the k likeliest tokens of every row."""
    x = _wide(logits)
    _all(x, refusals(x.max(dim=1).values.tolist()))
    found: Logprobs = pick("sampling.logprobs", _LAWS, impl, x, None)(x, chosen, min(k, x.shape[1]))
    return found


def _wide(logits: "Tensor") -> "Tensor":
    from stretto.kernels.sampling.adjust import wide

    return wide(logits)


def _rows(scores: Scores, index: Sequence[int]) -> "Tensor":
    import torch

    return scores.logits if len(index) == len(scores.logits) else scores.logits[torch.tensor(index)]


def _all(found: _T, refused: Refusals) -> _T:
    """`found` if every row is in it; else the error of the first that is not."""
    if refused:
        raise refused[min(refused)]
    return found
