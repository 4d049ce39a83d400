"""N-gram lookup: what followed these words the last time they occurred in this text.

For n = max_n ... min_n: if the last n tokens occurred before, propose the tokens after their most recent occurrence.
Longest n first. Prompt and output are one text. Good for edits, quotations and code; silent in open prose.

A request keeps its tokens and one dictionary per n. An n-gram enters its dictionary when a token follows it, so the
end of the text never finds itself, and a match always has a continuation. O(max_n) per token and per proposal.

Prompt lookup: github.com/apoorvumang/prompt-lookup-decoding. Differs from it: an index in place of a scan, and the
most recent match in place of the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.core.card import Can, Card
from stretto.core.drafter import Ask, Draft, Drafter, Round, Target
from stretto.core.errors import UserError


class _Text:
    """One request: its tokens, and where every n-gram that has a successor last ended."""

    def __init__(self, sizes: range) -> None:
        self.tokens: list[int] = []
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in sizes}

    def extend(self, tokens: Sequence[int]) -> None:
        held = self.tokens
        for token in tokens:
            for n, ends in self._ends.items():
                if n <= len(held):
                    ends[tuple(held[len(held) - n :])] = len(held)
            held.append(token)

    def continuation(self, num_tokens: int) -> tuple[int, ...]:
        held = self.tokens
        for n, ends in self._ends.items():
            end = ends.get(tuple(held[len(held) - n :])) if n <= len(held) else None
            if end is not None:
                return tuple(held[end : end + num_tokens])
        return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """max_n, min_n: lengths of the suffix that is looked up. How much to propose is what `Ask` says."""

    max_n: int = 3
    min_n: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_n <= self.max_n <= 64:
            why = "1 <= min_n <= max_n <= 64 must hold"
            raise UserError(f"ngram: min_n {self.min_n}, max_n {self.max_n}", why=why)

    def build(self, target: Target) -> "NGram":
        return NGram(range(self.max_n, self.min_n - 1, -1))


class NGram(Drafter):
    """sizes: lengths of the suffix, longest first."""

    def __init__(self, sizes: range) -> None:
        self._sizes = sizes
        self._texts: dict[int, _Text] = {}

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self._texts[rid] = _Text(self._sizes)
        self._texts[rid].extend(tokens)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft(self._texts[ask.rid].continuation(ask.max_tokens)) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            self._texts[one.rid].extend(one.verdict.emitted)

    def release(self, rid: int, keep: bool = False) -> None:
        del self._texts[rid]


CARD = Card(
    name="ngram",
    make=Config,
    idea="propose what followed the last occurrence of the same words",
    paper="github.com/apoorvumang/prompt-lookup-decoding",
    can=Can.CHAIN,
    tiny={"max_n": 3},
    state="the tokens and max_n dictionary entries per token, on the host",
    cost="O(max_n) per token",
)
