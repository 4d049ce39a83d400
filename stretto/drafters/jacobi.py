"""Jacobi decoding: guess the next tokens, compute all of them at once, and take what the model says for the next guess.

The rows of a rejected guess are no waste: row i of the step says what plain decoding would emit after the guessed
tokens 1 ... i. With a prefix that is right, that is right too; else it is a better guess than the one before. Iterated,
the guess becomes plain decoding's text, from left to right, usually in fewer steps than it has tokens.

    guess <- [y_{k+1}, ..., y_N]     y_i: what the model says after row i of the last step, k: rows that were accepted

New places at the end start as the last guessed token. No weights, and no memory but one guess per request.

Source: arXiv 2305.10427 (Jacobi and Gauss-Seidel-Jacobi decoding). Differs from it: guesses run through the judge, so
that sampled text is exact too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.core.card import Can, Card
from stretto.core.drafter import Ask, Draft, Drafter, Needs, Round, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Nothing to set: how much is guessed is what `Ask` says."""

    def build(self, target: Target) -> "Jacobi":
        return Jacobi()


class Jacobi(Drafter):
    """See the module docstring."""

    needs = Needs(picks=True)

    def __init__(self) -> None:
        self._guesses: dict[int, tuple[int, ...]] = {}  # never empty: the last token stands for what is unknown

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self._guesses[rid] = (tokens[-1] if tokens else 0,)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft(self._guess(ask.rid, ask.max_tokens)) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            accepted, picks = len(one.verdict.path), one.picks or ()
            better = picks[accepted + 1 : len(one.draft) + 1]
            rest = self._guesses[one.rid][len(one.verdict.emitted) :]  # a plain step says nothing about the guess
            last = one.verdict.emitted[-1:]
            self._guesses[one.rid] = better or (() if len(one.draft) else rest) or last

    def release(self, rid: int, keep: bool = False) -> None:
        del self._guesses[rid]

    def _guess(self, rid: int, num_tokens: int) -> tuple[int, ...]:
        guess = self._guesses[rid]
        return (*guess, *guess[-1:] * (num_tokens - len(guess)))[:num_tokens]


CARD = Card(
    name="jacobi",
    make=Config,
    idea="guess all next tokens, and take the model's answers for the next guess",
    paper="2305.10427",
    can=Can.CHAIN,
    state="one guess, on the host",
    cost="O(N) per step",
)
