"""Drafters that know the answer: controls for the laws of judges, engines and policies.

All are built from `continuations`, prompt -> the tokens that plain decoding gives for it. A request is recognised
by its first tokens, also when it is admitted again in the middle of its output.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from stretto.core.drafter import Ask, Branch, Draft, Drafter, Needs, Piece, Round, Target
from stretto.core.plan import StepPlan
from stretto.core.tree import Tree
from stretto.kernels.native.library import Team
from stretto.models.lm import LM


class _Known(Drafter):
    def __init__(self, continuations: Mapping[tuple[int, ...], Sequence[int]], num_nodes: int = 8) -> None:
        self._whole = [(*prompt, *output) for prompt, output in continuations.items()]
        self._num_nodes = num_nodes
        self.held: dict[int, list[int]] = {}
        self.proposed = self.accepted = 0

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self.held[rid] = list(tokens)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        drafts = [self._draft(self._rest(ask.rid), min(ask.max_tokens, self._num_nodes)) for ask in asks]
        self.proposed += sum(map(len, drafts))
        return drafts

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            self.held[one.rid] += one.verdict.emitted
            self.accepted += len(one.verdict.path)

    def release(self, rid: int, keep: bool = False) -> None:
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
        parents = [pick(row) if self._tree else row - 1 for row in range(1, n + 1)]
        tokens = tuple(
            pick(self._vocab) if parent else _other(self._random, self._vocab, rest[:1]) for parent in parents
        )
        return Draft(tokens, Tree.drafted(parents))


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
        depth_of = {0: 0}  # right rows -> how many right tokens lead to them
        tip = 0  # the deepest of them
        for row in range(1, num_nodes + 1):
            depth = depth_of[tip]
            if self._random.random() < 0.5 and depth < len(rest):
                tokens.append(rest[depth])
                parents.append(tip)
                tip, depth_of[row] = row, depth + 1
            else:
                parent = self._random.randrange(row)
                right = rest[depth_of[parent] :][:1] if parent in depth_of else ()
                tokens.append(_other(self._random, self._vocab, right))
                parents.append(parent)
        return Draft(tuple(tokens), Tree.drafted(parents))


class Noise(Drafter):
    """Random tokens: almost always wrong, and needs no known answer."""

    def __init__(self, vocab: int, seed: int = 0) -> None:
        self._vocab, self._random = vocab, random.Random(seed)

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        pass

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft(tuple(self._random.randrange(self._vocab) for _ in range(ask.max_tokens))) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        pass

    def release(self, rid: int, keep: bool = False) -> None:
        pass


def _other(rng: random.Random, vocab: int, wrong_if: Sequence[int]) -> int:
    """A random token that is none of `wrong_if`."""
    while True:
        token = rng.randrange(vocab)
        if token not in wrong_if:
            return token


def toy_target(lm: LM, threads: Team | None = None) -> Target:
    """What drafters are built for in tests. Whatever they load is a model that sometimes agrees: the first layer of
    `lm`."""
    return Target(
        model=lm,
        context=128,
        max_seqs=8,
        max_rows=64,
        vocab_size=lm.config.vocab_size,
        threads=threads,
        tokenizer=Letters(),
        load=lambda path: (lm.first(1), Letters()),
    )


@dataclass(frozen=True)
class Letters:
    """A tokenizer that knows what its ids mean and nothing else."""

    tokens: tuple[str, ...] = ("a", "b")

    def shares_ids(self, other: "Letters") -> bool:
        return self.tokens == other.tokens


class Features(Drafter):
    """A head of random weights over hidden states (as EAGLE's), which are checked against the model's own.

    tolerance: of the hidden states.
    """

    needs = Needs(features=(1, -1), rows=True)

    def __init__(self, lm: LM, tolerance: float) -> None:
        self._lm, self._tolerance = lm, tolerance
        self._head = torch.randn(
            lm.config.vocab_size, 2 * lm.config.d_model, generator=torch.Generator().manual_seed(1)
        )
        self.texts: dict[int, list[int]] = {}
        self.read_tokens: dict[int, list[int]] = {}
        self._last: dict[int, torch.Tensor] = {}

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self.texts[rid], self.read_tokens[rid] = list(tokens), []

    def read(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            known, have = self.read_tokens[piece.rid], len(piece.tokens)
            assert piece.start == len(known), "every committed row once, in order"
            known += piece.tokens
            _, whole = self._lm.features(StepPlan.of([known]), self.needs.features)
            for got, want in zip(piece.features, whole, strict=True):
                assert len(got) == have
                torch.testing.assert_close(
                    got.double(), want[piece.start :].double(), atol=self._tolerance, rtol=self._tolerance
                )
            self._last[piece.rid] = torch.cat([h[-1] for h in piece.features]).float()

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        for ask in asks:
            assert self.read_tokens[ask.rid] == self.texts[ask.rid][:-1], "all but the pending token has been read"
        return [self._draft(ask.rid) for ask in asks]

    def _draft(self, rid: int) -> Draft:
        if rid not in self._last:  # a prompt of one token: nothing has been read
            return Draft()
        return Draft((int((self._head @ self._last[rid]).argmax()),))

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            self.texts[one.rid] += one.verdict.emitted

    def release(self, rid: int, keep: bool = False) -> None:
        del self.texts[rid], self.read_tokens[rid]
        self._last.pop(rid, None)


class Ahead(_Known):
    """Prepares its next proposal in a thread while the target verifies this one, for the case that all is accepted.

    Every other draft is spoiled at its second token, so that guesses fail too.
    """

    def __init__(self, continuations: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        super().__init__(continuations, 6)
        self._threads = ThreadPoolExecutor(2)
        self._futures: dict[int, tuple[int, Future[tuple[int, ...]]]] = {}
        self.hits = self._turn = 0

    def prefetch(self, drafts: Sequence[tuple[int, Draft]]) -> None:
        for rid, draft in drafts:
            rest, n = self._rest(rid), len(draft) + 1
            self._futures[rid] = len(self.held[rid]) + n, self._threads.submit(lambda rest=rest, n=n: rest[n : n + 6])

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        found = []
        for ask in asks:
            at, future = self._futures.pop(ask.rid, (-1, None))
            hit = future is not None and at == len(self.held[ask.rid])
            self.hits += hit
            tokens = list((future.result() if hit else self._rest(ask.rid))[: min(ask.max_tokens, 6)])
            self._turn += 1
            if self._turn % 2 and len(tokens) > 1:
                tokens[1] = (tokens[1] + 1) % 23
            found.append(Draft(tuple(tokens)))
        self.proposed += sum(map(len, found))
        return found

    def release(self, rid: int, keep: bool = False) -> None:
        super().release(rid, keep)
        self._futures.pop(rid, None)


class RidingAlong(_Known):
    """Random drafts with random rows beside them; what the target says after all of them is what it says alone.

    plain: the token that plain decoding emits after a text.
    """

    needs = Needs(extra=7, picks=True, top=3)

    def __init__(
        self, continuations: Mapping[tuple[int, ...], Sequence[int]], vocab: int, plain: Callable[[list[int]], int]
    ) -> None:
        super().__init__(continuations, 5)
        self._vocab, self._plain, self._random = vocab, plain, random.Random(2)
        self._branches: dict[int, Branch] = {}
        self.checked = self.tops = 0

    def _draft(self, rest: tuple[int, ...], num_nodes: int) -> Draft:
        tokens = list(rest[:num_nodes])
        if tokens and self._random.random() < 0.5:
            tokens[-1] = self._random.randrange(self._vocab)
        return Draft(tuple(tokens))

    def extra(self, asks: Sequence[Ask], drafts: Sequence[Draft]) -> list[Branch]:
        for ask, draft in zip(asks, drafts, strict=True):
            n = self._random.randrange(8)
            parents = tuple(self._random.randrange(len(draft) + 1 + i) for i in range(n))
            self._branches[ask.rid] = Branch(tuple(self._random.randrange(self._vocab) for _ in range(n)), parents)
        return [self._branches[ask.rid] for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            branch, text = self._branches.pop(one.rid, Branch((), ())), self.held[one.rid]
            tree = one.draft.tree
            assert one.picks is not None and len(one.picks) >= len(tree)
            if len(one.picks) > len(tree):
                tree = tree.grafted(branch.parents)
            tokens = (*one.draft.tokens, *branch.tokens)
            assert len(one.picks) == len(tree)
            for row in self._random.sample(range(len(tree)), min(2, len(tree))):
                told = [*text, *(tokens[r - 1] for r in tree.paths[row][1:])]
                assert self._plain(told) == one.picks[row]
                self.checked += 1
            if one.top:
                assert one.top[0][0] == one.verdict.emitted[-1] and len(one.top) == 3
                self.tops += 1
        super().observe(rounds)
