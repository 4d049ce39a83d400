"""Suffix decoding: what followed these words in this text and in the texts before it, weighted by how often.

Every text is a trie of its substrings up to `depth` tokens; each node counts how often its path occurs. For every
length of match the last tokens of the request are looked up, and the node found there is a distribution of
continuations. The tree that is proposed grows best first,

    P(child) = P(node) * count(child) / count(node)

until it has `factor` tokens per matched token, the step has no more room, or P falls below `least`. Of all lengths, and
of the request's own trie and the one of earlier texts, that tree is taken which promises most accepted tokens, the sum
of its P. Complete texts are remembered across requests, the oldest forgotten first: `remember` tokens in all.

Source: arXiv 2411.04975. Differs from it: tries of bounded depth, whose counts make forgetting exact, in place of
suffix trees.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from stretto.core.card import Can, Card
from stretto.core.drafter import Ask, Draft, Drafter, Round, Target
from stretto.core.errors import UserError
from stretto.core.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """depth: longest path, match and continuation together, in tokens. remember: tokens of complete texts that are
    kept, some kilobytes each (0 = none). factor: most draft tokens per matched token. least: probability of the least
    likely token."""

    depth: int = 16
    remember: int = 20_000
    factor: float = 2.0
    least: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.depth <= 128:
            raise UserError(f"suffix: depth is {self.depth}", why="it is from 2 to 128 tokens")
        if self.remember < 0 or not 0 < self.factor < math.inf or not 0 < self.least <= 1:
            raise UserError(
                f"suffix: remember {self.remember}, factor {self.factor}, least {self.least}",
                why="remember is at least 0, factor above 0 and finite, least above 0 and at most 1",
            )

    def build(self, target: Target) -> "Suffix":
        return Suffix(self)


class _Node:
    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.count, self.children = 0, dict[int, _Node]()


class _Trie:
    """Counts of all substrings of some texts, up to `depth` tokens long."""

    def __init__(self, depth: int) -> None:
        self._depth, self.root = depth, _Node()

    def extend(self, open_paths: "deque[_Node]", tokens: Sequence[int]) -> None:
        """Append tokens to a text. open_paths: nodes of its last substrings, shortest first; empty for a new text."""
        for token in tokens:
            self.root.count += 1
            open_paths.appendleft(self.root)
            while len(open_paths) > self._depth:
                open_paths.pop()
            for place, node in enumerate(open_paths):
                child = node.children.setdefault(token, _Node())
                child.count += 1
                open_paths[place] = child

    def forget(self, tokens: Sequence[int]) -> None:
        """Undo `extend` of a whole text."""
        self.root.count -= len(tokens)
        for first in range(len(tokens)):
            node = self.root
            for token in tokens[first : first + self._depth]:
                child = node.children[token]
                child.count -= 1
                if not child.count:
                    del node.children[token]  # nothing else goes through it
                    break
                node = child

    def matches(self, tokens: Sequence[int]) -> Iterator[tuple[int, _Node]]:
        """(length, node) for every suffix of `tokens` that occurs and has a continuation, longest first."""
        for length in range(min(len(tokens), self._depth - 1), 0, -1):
            node: _Node | None = self.root
            for token in tokens[len(tokens) - length :]:
                node = node.children.get(token) if node is not None else None
            if node is not None and node.children:
                yield length, node


class Suffix(Drafter):
    """See the module docstring."""

    is_lookup = True

    def __init__(self, config: Config) -> None:
        self._config, self._earlier = config, _Trie(config.depth)
        self._texts: dict[int, tuple[list[int], _Trie, deque[_Node]]] = {}
        self._remembered: deque[tuple[int, ...]] = deque()
        self._size = 0  # tokens of those

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self._texts[rid] = [], _Trie(self._config.depth), deque()
        self._extend(rid, tokens)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._best(ask) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            self._extend(one.rid, one.verdict.emitted)

    def release(self, rid: int, keep: bool = False) -> None:
        tokens, _, _ = self._texts.pop(rid)
        if keep and 0 < len(tokens) <= self._config.remember:
            self._remembered.append(tuple(tokens))
            self._earlier.extend(deque(), tokens)
            self._size += len(tokens)
            while self._size > self._config.remember:
                oldest = self._remembered.popleft()
                self._earlier.forget(oldest)
                self._size -= len(oldest)

    def _extend(self, rid: int, tokens: Sequence[int]) -> None:
        text, trie, open_paths = self._texts[rid]
        text += tokens
        trie.extend(open_paths, tokens)

    def _best(self, ask: Ask) -> Draft:
        text, own, _ = self._texts[ask.rid]
        best, promise = Draft(), 0.0
        for trie in (own, self._earlier):
            for length, node in trie.matches(text):
                draft, expected = self._grown(node, min(ask.max_tokens, int(self._config.factor * length)))
                if expected > promise:
                    best, promise = draft, expected
        return best

    def _grown(self, node: _Node, most: int) -> tuple[Draft, float]:
        """The likeliest `most` tokens below a node, and how many of them are expected to be accepted."""
        tokens, parents, scores, expected, order = list[int](), list[int](), list[float](), 0.0, count()
        heap = [(-1.0, next(order), 0, node, -1, 1.0)]  # -P, tie, parent row, node, token, P given the parent
        while heap and len(tokens) < most:
            minus_p, _, parent, here, token, share = heapq.heappop(heap)
            row = 0
            if token >= 0:
                tokens.append(token)
                parents.append(parent)
                scores.append(share)
                expected, row = expected - minus_p, len(tokens)
            # Where a text ends there, its continuations are fewer than its occurrences.
            for follower, child in here.children.items():
                share = child.count / here.count
                if -minus_p * share >= self._config.least:
                    heapq.heappush(heap, (minus_p * share, next(order), row, child, follower, share))
        return Draft(tuple(tokens), Tree.drafted(parents), scores=tuple(scores)), expected


CARD = Card(
    name="suffix",
    make=Config,
    idea="propose the likeliest continuations of these words in this text and in earlier ones",
    paper="2411.04975",
    can=Can.CHAIN | Can.TREE,
    tiny={"depth": 4},
    state="a trie of its substrings, about 3 kB per token; complete texts are remembered up to a limit, on the host",
    cost="O(depth^2 + N log N) per proposal",
)
