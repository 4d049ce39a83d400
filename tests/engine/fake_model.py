"""A model that computes nothing: its keys are tokens, its state is a hash of them. It reads both where the engine says
they lie, and compares them, so that a wrong page, a stale slot or a missed copy cannot go unnoticed.

The next token is a function of the hash of all tokens before it, as they are read; `continuation` says what that is.
"""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stretto.cache.layout import Allocated, PoolArray, PoolLayout
from stretto.cache.placement import Placed, Placement
from stretto.cache.sizes import PoolSizes
from stretto.core.card import Can
from stretto.core.costs import TokenCost
from stretto.core.pages import PAGE_SIZE, PageGroup
from stretto.core.plan import StepPlan
from stretto.core.scores import Outputs, Scores
from stretto.core.seqs import Seqs
from stretto.runner.kept import KeptModel, Opened
from stretto.runner.replay import Head
from stretto.runner.sizes import Sizes

VOCAB, END = 40, 0
_PRIME = (1 << 61) - 1


def mixed(state: int, token: int) -> int:
    """The hash of one token more."""
    return (state * 1_000_003 + token + 7) % _PRIME


def chosen(state: int) -> int:
    """The token after a text with this hash."""
    return (state * 2_654_435_761 >> 9) % VOCAB


def hashed(tokens: Sequence[int]) -> int:
    state = 0
    for token in tokens:
        state = mixed(state, token)
    return state


def continuation(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What must come out: up to `num_tokens`, END included."""
    state, found = hashed(prompt), list[int]()
    while len(found) < num_tokens and END not in found:
        found.append(chosen(state))
        state = mixed(state, found[-1])
    return found


class FakePools(Allocated):
    """Tokens on pages, (tokens so far, hash) in slots."""

    def __init__(self, layout: PoolLayout, sizes: PoolSizes) -> None:
        self.layout, self.num_blocks, self.num_slots = layout, sizes.num_blocks, sizes.num_slots
        self.pages = [[[-1] * PAGE_SIZE for _ in range(n)] for n in self.num_blocks]
        self.slots: list[tuple[int, int]] = [(0, 0)] * self.num_slots

    def caches(self, placement: Placement) -> Placed:
        return Placed(placement)

    def read(self, group: int, location: int) -> int:
        return self.pages[group][location // PAGE_SIZE][location % PAGE_SIZE]

    def write(self, group: int, location: int, token: int) -> None:
        assert location >= PAGE_SIZE, "the null page is written"
        self.pages[group][location // PAGE_SIZE][location % PAGE_SIZE] = token

    def move(self, group: int, source: Sequence[int], destination: Sequence[int]) -> None:
        for location, token in zip(destination, [self.read(group, one) for one in source], strict=True):
            self.write(group, location, token)

    def clear(self, group: int, pages: Sequence[int]) -> None:
        for page in pages:
            self.pages[group][page] = [-1] * PAGE_SIZE

    def read_units(self, number: int, units: Sequence[int]) -> bytes:
        group = self.layout.arrays[number].group
        rows = [self.slots[unit] if group is None else self.pages[group][unit] for unit in units]
        return array("q", [value for row in rows for value in row]).tobytes()

    def write_units(self, number: int, units: Sequence[int], data: bytes | memoryview) -> None:
        group, values = self.layout.arrays[number].group, array("q", bytes(data)).tolist()
        for i, unit in enumerate(units):
            assert unit, "the null page or the zero state is written"
            if group is None:
                self.slots[unit] = values[2 * i], values[2 * i + 1]
            else:
                self.pages[group][unit] = values[PAGE_SIZE * i : PAGE_SIZE * (i + 1)]

    def check(self) -> None:
        assert all(page[0] == [-1] * PAGE_SIZE for page in self.pages) and self.slots[0] == (0, 0)


class FakeReplay:
    """Runs the plans of a `Runner`, and commits as native kernels do: the state after the pending row is in the
    destination once a step has run, accepted rows are replayed."""

    def __init__(self, pools: FakePools) -> None:
        self.pools, self.host_operations = pools, dict[str, str]()
        self._after: list[list[int]] = []  # per sequence the hash after every row
        self._destination: Sequence[int] = ()

    def __call__(self, plan: StepPlan) -> Outputs:
        assert isinstance(plan.caches, Placed)
        states = self._run(plan.token_ids, plan.seqs, plan.caches.placement)
        logits = torch.zeros(len(plan.wanted), VOCAB)
        for i, row in enumerate(plan.wanted):
            logits[i, chosen(states[row])] = 1.0
        return Outputs(Scores(lambda: logits))

    def commit(self, seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        for b, path in enumerate(paths):
            if path and self.pools.has_slots:
                end = seqs.contexts[b] + seqs.definite[b] + len(path)
                self.pools.slots[self._destination[b]] = (end, self._after[b][path[-1]])

    def ahead(
        self, plan: StepPlan, how: Sequence[Any], stops: Sequence[Collection[int]], num_steps: int
    ) -> tuple[list[list[int]], dict[int, Any]]:
        assert isinstance(plan.caches, Placed)
        where, n = plan.caches.placement, plan.seqs.num_seqs
        tokens, source, found = list(plan.token_ids), list(where.source), list[list[int]]()
        for step in range(num_steps):
            seqs = Seqs.of([1] * n, [context + step for context in plan.seqs.contexts], num_step=n)
            pages = [type(own)(own.tables, own.slot_mapping[step::num_steps], own.key_positions) for own in where.pages]
            states = self._run(tokens, seqs, Placement(pages, source, where.destination))
            tokens, source = [chosen(state) for state in states], list(where.destination)
            found.append(tokens)
            if any(token in own for token, own in zip(tokens, stops, strict=True)):
                break
        return found, {}

    def _run(self, tokens: Sequence[int], seqs: Seqs, where: Placement) -> list[int]:
        """The hash after every row."""
        for group, own in enumerate(where.pages):
            for location, token in zip(own.slot_mapping, tokens, strict=True):
                self.pools.write(group, location, token)
        found: list[int] = []
        self._after, self._destination = [], where.destination
        for b, (context, rows) in enumerate(zip(seqs.contexts, seqs.lens, strict=True)):
            before = self._state(b, context, where)
            tree, own = seqs.tree(b), list[int]()
            for row in range(rows):
                parent = tree.parents[row]
                own.append(mixed(own[parent] if parent >= 0 else before, tokens[seqs.starts[b] + row]))
            if self.pools.has_slots:
                assert where.destination[b], "the zero state is written"
                definite = seqs.definite[b]
                if definite:
                    self.pools.slots[where.destination[b]] = (context + definite, own[definite - 1])
            self._after.append(own)
            found += own
        return found

    def _state(self, b: int, context: int, where: Placement) -> int:
        """The hash of what a sequence has, read in every way there is."""
        seen = [self._keys(group, b, context, where) for group in range(len(where.pages))]
        state = None
        for group, tokens in zip(self.pools.layout.groups, seen, strict=True):
            assert -1 not in tokens, "an unwritten key"
            if group.window is None:
                state = hashed(tokens)
                whole = tokens
        for tokens in seen:
            assert tokens == whole[len(whole) - len(tokens) :], "groups differ"
        if self.pools.has_slots:
            held, own = self.pools.slots[where.source[b]]
            assert held == context, f"the state of {held} tokens for {context}"
            assert state is None or own == state, "state and keys differ"
            state = own
        assert state is not None
        return state

    def _keys(self, group: int, b: int, context: int, where: Placement) -> list[int]:
        window = self.pools.layout.groups[group].window
        first = 0 if window is None else max(0, context + 1 - window)
        table = where.pages[group].tables[b]
        places = [table[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(first, context)]
        assert all(place >= PAGE_SIZE for place in places), "the null page is read"
        return [self.pools.read(group, place) for place in places]


@dataclass(frozen=True, slots=True)
class FakeModel(KeptModel):
    """num_blocks, num_slots: of its pools, whatever the sizes say."""

    sizes: PoolSizes = field(default_factory=lambda: PoolSizes((1,), 1))

    def open(self, sizes: Sizes, threads: object, *, max_rows: int, vocab_size: int) -> Opened:
        pools = FakePools(self.layout, self.sizes)
        replay: Any = FakeReplay(pools)
        return Opened(pools, replay, replay)


def fake_model(num_blocks: int, num_slots: int, *, window: int | None = None, states: bool = True) -> FakeModel:
    """window: of a second page group. states: whether sequences have a state beside their keys."""
    groups = (PageGroup(),) if window is None else (PageGroup(), PageGroup(window))
    arrays = [PoolArray(group, 1, 1, 8) for group in range(len(groups))]
    arrays += [PoolArray(None, 1, 2, 8)] if states else []
    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE
    return FakeModel(
        program=None,  # type: ignore[arg-type]
        head=Head(0, 0, VOCAB, 0, 0),
        layout=PoolLayout(groups, tuple(arrays)),
        abilities=((0, "fake", can),),
        max_rows=0,
        context=0,
        tiles=lambda name: 0,
        token_cost=TokenCost(per_token=1.0, per_pair=0.0),
        sizes=PoolSizes((num_blocks,) * len(groups), num_slots if states else 1),
    )
