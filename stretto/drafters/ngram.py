"""N-gram lookup: what followed these words the last time they occurred in this text.

For n = max_n ... min_n: if the last n tokens occurred before, propose the tokens after their most recent occurrence.
Longest n first. Prompt and output are one text. Good for edits, quotations and code; silent in open prose.

A request keeps its tokens and one dictionary per n. An n-gram enters its dictionary when a token follows it, so the
end of the text never finds itself, and a match always has a continuation. O(max_n) per token and per proposal.

How sure is a proposal? What counts is how far back the two places agree, up to `_LONGEST` tokens. For every token that
is emitted the drafter looks what it would have proposed, whether or not it was asked, and counts by that length how
often it is right: in this text, beside all texts so far, beside a guess. A match whose token is right becomes one that
is a token longer, so token i of a proposal is as sure as a match that is i tokens longer.

Prompt lookup: github.com/apoorvumang/prompt-lookup-decoding. Differs from it: an index in place of a scan, the most
recent match in place of the first, and probabilities.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from stretto.core.card import Can, Card
from stretto.core.drafter import Ask, Draft, Drafter, Round, Target
from stretto.core.errors import UserError

_LONGEST = 20  # tokens of a match
_CLASSES = (0, 1, 2, 3, 4, 4, 5, 5, 5, *[6] * 6, *[7] * 6)  # length of a match -> which are counted together
_GUESSES = (0.1, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9)  # how often each of these is right, before anything was seen
_WEIGHTS = 4.0, 16.0  # in tokens: of all texts beside this one, of the guess beside all texts
_FADES = 0.98, 0.999  # per token of a class: in this text, in all


class _Hits:
    """How often a proposal was right, per class of its match; old ones fade."""

    def __init__(self, fade: float) -> None:
        self._fade, zeros = fade, [0.0] * len(_GUESSES)
        self._right, self._seen = array("d", zeros), array("d", zeros)

    def add(self, kind: int, right: bool) -> None:
        self._right[kind] = self._fade * self._right[kind] + right
        self._seen[kind] = self._fade * self._seen[kind] + 1

    def share(self, kind: int, before: float, weight: float) -> float:
        """before: what is thought of it otherwise, as if seen in `weight` tokens."""
        return (self._right[kind] + weight * before) / (self._seen[kind] + weight)


class _Text:
    """One request: its tokens, and where every n-gram that has a successor last ended."""

    def __init__(self, sizes: range) -> None:
        self.tokens: list[int] = []
        self.hits = _Hits(_FADES[0])
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in sizes}

    def append(self, token: int) -> None:
        held = self.tokens
        for n, ends in self._ends.items():
            if n <= len(held):
                ends[tuple(held[len(held) - n :])] = len(held)
        held.append(token)

    def match(self) -> tuple[int, int]:
        """Where the continuation begins, and how many tokens before it agree with the end; 0 of them = nowhere."""
        held = self.tokens
        for n, ends in self._ends.items():
            end = ends.get(tuple(held[len(held) - n :])) if n <= len(held) else None
            if end is not None:
                length, most = n, min(end, _LONGEST)
                while length < most and held[end - 1 - length] == held[-1 - length]:
                    length += 1
                return end, length
        return 0, 0


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

    is_lookup = True

    def __init__(self, sizes: range) -> None:
        self._sizes = sizes
        self._texts: dict[int, _Text] = {}
        self._hits = _Hits(_FADES[1])  # of all texts

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        text = self._texts[rid] = _Text(self._sizes)
        for token in tokens:
            text.append(token)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(self._texts[ask.rid], ask.max_tokens) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            text = self._texts[one.rid]
            for token in one.verdict.emitted:
                end, length = text.match()
                if length:
                    kind, right = _CLASSES[length], text.tokens[end] == token
                    text.hits.add(kind, right)
                    self._hits.add(kind, right)
                text.append(token)

    def release(self, rid: int, keep: bool = False) -> None:
        del self._texts[rid]

    def _draft(self, text: _Text, num_tokens: int) -> Draft:
        end, length = text.match()
        tokens = tuple(text.tokens[end : end + num_tokens]) if length else ()
        sure = [self._sure(text, kind) for kind in range(len(_GUESSES))] if tokens else []
        scores = tuple(sure[_CLASSES[min(length + i, _LONGEST)]] for i in range(len(tokens)))
        return Draft(tokens, scores=scores)

    def _sure(self, text: _Text, kind: int) -> float:
        """How likely a proposal of this class is right here."""
        return text.hits.share(kind, self._hits.share(kind, _GUESSES[kind], _WEIGHTS[1]), _WEIGHTS[0])


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
