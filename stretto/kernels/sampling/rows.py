"""How the token after a row is chosen, and why a row may give no token."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from stretto.core.errors import RunError, UserError
from stretto.core.sampling import Noise, Sampling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RowSampling:
    """How the token after one row is chosen: built by the engine for every row of every step.

    sampling: resolved (`Sampling.resolve`). noise, position: the stream, and the absolute position of the token to
    choose. prompt, output, path: the tokens before it; `path` holds draft tokens between `output` and this row.
    banned: ids that may not be chosen (end of text before `min_tokens`). allowed: a grammar's mask, bit t % 8 of byte
    t // 8 for token t; what lies beyond its end is not allowed.
    """

    sampling: Sampling
    noise: Noise
    position: int
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    path: Sequence[int] = ()
    banned: Sequence[int] = ()
    allowed: bytes | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the choice is the argmax of the raw logits."""
        return self.sampling.temperature == 0 and not self.is_adjusted

    @property
    def is_adjusted(self) -> bool:
        """Whether bias, penalties or masks change the logits."""
        s = self.sampling
        return bool(s.logit_bias or self.banned) or self.allowed is not None or s.has_penalties


Refusals = dict[int, UserError]
"""Rows that give no token, by number, each with the error it would raise alone."""


class Logprobs(NamedTuple):
    """Of the model's own law (raw logits): the chosen token's, and the k likeliest tokens, likeliest first."""

    chosen: "Tensor"  # [R] fp32
    ids: "Tensor"  # [R, k] int64
    values: "Tensor"  # [R, k] fp32


def refusals(top: Sequence[float]) -> Refusals:
    """Which of the rows with these largest logits (`max` hands NaN on) give no token."""
    if all(map(math.isfinite, top)):
        return {}
    return {r: refusal(value) for r, value in enumerate(top) if not math.isfinite(value)}


def refusal(top: float) -> UserError:
    """Why a row whose largest logit is `top` gives no token."""
    if top == -math.inf:
        return UserError("no token is allowed", why="bans, the grammar and the model's own mask exclude every token")
    return RunError(
        f"a logit is {'NaN' if math.isnan(top) else 'infinite'}",
        why="the model's arithmetic overflowed, or its weights are damaged",
    )


def forbidden_ids(allowed: bytes, width: int) -> Iterator[int]:
    """The tokens below `width` that a mask does not allow, in order."""
    return (t for t in range(width) if t // 8 >= len(allowed) or not allowed[t // 8] >> t % 8 & 1)


def check_ids(ids: Iterable[int], vocab: int) -> None:
    """Raises UserError for an id that the vocabulary does not have."""
    for token in ids:
        if not 0 <= token < vocab:
            raise UserError(f"token id {token} does not exist", why=f"the vocabulary has {vocab} tokens")
