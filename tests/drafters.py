"""Drafters that know the answer: controls for the laws of judges, engines and policies.

All are built from `continuations`, prompt -> the tokens that plain decoding gives for it. A request is recognised
by its first tokens, also when it is admitted again in the middle of its output.
"""

import random
from collections.abc import Mapping, Sequence

from stretto.core.drafter import Ask, Draft, Drafter, Verdict


class _Known(Drafter):
    def __init__(self, continuations: Mapping[tuple[int, ...], Sequence[int]], num_nodes: int = 8) -> None:
        self._whole = [(*prompt, *output) for prompt, output in continuations.items()]
        self._num_nodes = num_nodes
        self.held: dict[int, list[int]] = {}
        self.proposed = self.accepted = 0

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self.held[rid] = list(tokens)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        drafts = [self._draft(self._rest(ask.rid), min(ask.max_nodes, self._num_nodes)) for ask in asks]
        self.proposed += sum(map(len, drafts))
        return drafts

    def observe(self, rid: int, draft: Draft, verdict: Verdict) -> None:
        self.held[rid] += verdict.emitted
        self.accepted += len(verdict.path)

    def release(self, rid: int) -> None:
        del self.held[rid]

    def _rest(self, rid: int) -> tuple[int, ...]:
        held = tuple(self.held[rid])
        for whole in self._whole:
            if whole[: len(held)] == held:
                return whole[len(held) :]
        raise AssertionError(f"request {rid} left the known text after {len(held)} tokens")

    def _draft(self, rest: tuple[int, ...], num_nodes: int) -> Draft:
        raise NotImplementedError


class Oracle(_Known):
    """Always right: a chain of the tokens that come next."""

    def _draft(self, rest: tuple[int, ...], num_nodes: int) -> Draft:
        return Draft(rest[:num_nodes])


class Saboteur(_Known):
    """Always wrong at the first node of every path: random chains, or random trees with `tree`."""

    def __init__(
        self,
        continuations: Mapping[tuple[int, ...], Sequence[int]],
        vocab: int,
        *,
        num_nodes: int = 8,
        tree: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(continuations, num_nodes)
        self._vocab, self._tree, self._random = vocab, tree, random.Random(seed)

    def _draft(self, rest: tuple[int, ...], num_nodes: int) -> Draft:
        n, pick = self._random.randint(min(1, num_nodes), num_nodes), self._random.randrange
        parents = tuple(pick(-1, i) if self._tree and i else i - 1 for i in range(n))
        tokens = tuple(
            _other(self._random, self._vocab, rest[:1]) if parent < 0 else pick(self._vocab) for parent in parents
        )
        return Draft(tokens, parents if self._tree else None)


class TreeOracle(_Known):
    """The right chain, hidden in a random tree: every node of it may have wrong siblings before and after it."""

    def __init__(
        self, continuations: Mapping[tuple[int, ...], Sequence[int]], vocab: int, *, num_nodes: int = 12, seed: int = 0
    ) -> None:
        super().__init__(continuations, num_nodes)
        self._vocab, self._random = vocab, random.Random(seed)

    def _draft(self, rest: tuple[int, ...], num_nodes: int) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        depth_of = {-1: 0}  # right nodes -> how many right tokens lead to them
        tip = -1  # the deepest of them
        for node in range(num_nodes):
            depth = depth_of[tip]
            if self._random.random() < 0.5 and depth < len(rest):
                tokens.append(rest[depth])
                parents.append(tip)
                tip, depth_of[node] = node, depth + 1
            else:
                parent = self._random.randrange(-1, node)
                right = rest[depth_of[parent] :][:1] if parent in depth_of else ()
                tokens.append(_other(self._random, self._vocab, right))
                parents.append(parent)
        return Draft(tuple(tokens), tuple(parents))


class Noise(Drafter):
    """Random tokens: almost always wrong, and needs no known answer."""

    def __init__(self, vocab: int, seed: int = 0) -> None:
        self._vocab, self._random = vocab, random.Random(seed)

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        pass

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft(tuple(self._random.randrange(self._vocab) for _ in range(ask.max_nodes))) for ask in asks]

    def observe(self, rid: int, draft: Draft, verdict: Verdict) -> None:
        pass

    def release(self, rid: int) -> None:
        pass


def _other(rng: random.Random, vocab: int, wrong_if: Sequence[int]) -> int:
    """A random token that is none of `wrong_if`."""
    while True:
        token = rng.randrange(vocab)
        if token not in wrong_if:
            return token
