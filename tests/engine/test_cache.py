"""The cache against plain Python lists: any history of requests leaves exactly the committed tokens, and nothing else.

The fake model stores token ids as its keys and a rolling hash as its fixed-size state, so a wrong page, a wrong slot,
a row too many or a state of somebody else changes a number. All values are integers, exact in fp64.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from stretto.cache.blocks import BlockPool, SlotPool
from stretto.cache.manager import CacheManager
from stretto.cache.placement import PagePlacement, Placement
from stretto.cache.pools import LayerSpecs, Pools, layout_of
from stretto.cache.sizes import longest_context, sequence_bytes, size_pools
from stretto.cache.tables import Table
from stretto.core.card import CODECS, Can
from stretto.core.errors import FitError, UserError
from stretto.core.page_format import PageFormat, Plain, page_format
from stretto.core.pages import PAGE_SIZE, PageGroup
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, PageRef, Slot, SlotRef, StateSpec, paged, slot

KEYS = StateSpec(name="k", shape=(2,), kind="paged")
KEYS_BY_LANES = replace(KEYS, lanes=True)
VALUES = StateSpec(name="v", shape=(3,), kind="paged")
HASH = StateSpec(name="h", shape=(2,), kind="slot")
WINDOWS = {"window:1": 1, "window:20": 20}


def within(window: str, *specs: StateSpec) -> tuple[StateSpec, ...]:
    """The same states, of which only a window stays."""
    return tuple(replace(spec, group=window) for spec in specs)


MODELS = {
    "attention": ((KEYS, VALUES), (KEYS, VALUES)),
    "recurrent": ((HASH,), (HASH,)),
    "hybrid": ((HASH,), (KEYS, VALUES), (KEYS, HASH)),
    "lanes": ((KEYS_BY_LANES, VALUES), (KEYS_BY_LANES, VALUES)),
    "window": (within("window:20", KEYS_BY_LANES, VALUES), within("window:20", KEYS, VALUES)),
    "three groups": ((KEYS, VALUES), within("window:20", KEYS, VALUES), (HASH,), within("window:1", KEYS_BY_LANES)),
}
NUM_BLOCKS, NUM_SLOTS = 13, 4  # small, so that random histories run out of both


WIDE = Plain(torch.float64)
FORMATS = {card.name: page_format(card.name) for card in CODECS.cards(Can.KV)}


def make(
    specs: LayerSpecs, num_blocks: int = NUM_BLOCKS, num_slots: int = NUM_SLOTS, kv: PageFormat = WIDE
) -> CacheManager:
    wide = torch.float64
    return CacheManager(Pools(specs, num_blocks=num_blocks, num_slots=num_slots, kv=kv, state_dtype=wide, lanes=True))


def rolling(tokens: Sequence[int], layer: int) -> list[float]:
    """The state after `tokens`: the specification of the fake recurrent layer."""
    value = 0
    for token in tokens:
        value = (value * 31 + token + layer + 1) % 1_000_003
    return [float(value), float(len(tokens))]


def replay(states: Slot, seqs: Seqs, rows: Mapping[str, Tensor]) -> None:
    """Advance the rolling hash over chains of recorded rows."""
    ends = states.read().clone()
    for b, (start, n) in enumerate(zip(seqs.starts, seqs.lens, strict=False)):
        for token in rows["token"][start : start + n]:
            ends[b, 0] = (ends[b, 0] * 31 + token + 1) % 1_000_003
            ends[b, 1] += 1
    states.write(ends)


def forward(specs: LayerSpecs, caches: Sequence[LayerCache], tokens: Sequence[Sequence[float]], seqs: Seqs) -> None:
    """One call of the fake model: write what the rows say, as a kernel would."""
    packed = torch.tensor([t for row in tokens for t in row], dtype=torch.float64)
    for layer, (layer_specs, cache) in enumerate(zip(specs, caches, strict=True)):
        for spec in layer_specs:
            if spec.kind == "paged":
                # Every layer and state stores other numbers, so that mixing them up shows.
                rows = (packed + 10_000 * layer + (5_000 if spec.name == "v" else 0)).view(-1, *[1] * len(spec.shape))
                paged(cache, spec.name).append(rows.expand(-1, *spec.shape), seqs)
                continue
            state = slot(cache, spec.name)
            starts = zip(seqs.starts, seqs.definite, strict=False)
            definite = torch.cat([torch.arange(first, first + n) for first, n in starts] or [torch.arange(0)])
            keep = Seqs.of(seqs.definite, seqs.contexts)
            replay(state, keep, {"token": packed[definite] + layer})
            if seqs.has_drafts:
                state.record(replay, {"token": packed + layer})


def expect(
    specs: LayerSpecs,
    caches: Sequence[LayerCache],
    seqs: Seqs,
    committed: Sequence[Sequence[int]],
    kv: PageFormat = WIDE,
) -> None:
    """What the caches hold of the context of every sequence, as far as the next row sees it, is what was committed: a
    token by itself, in the format of the pages."""
    for layer, (layer_specs, cache) in enumerate(zip(specs, caches, strict=True)):
        for spec in layer_specs:
            for b, tokens in enumerate(committed):
                if spec.kind == "paged":
                    first = max(0, len(tokens) + 1 - WINDOWS.get(spec.group, 1 << 30))
                    found = paged(cache, spec.name).read(b, seqs)[first : len(tokens)]
                    shift = 10_000 * layer + (5_000 if spec.name == "v" else 0)
                    want = torch.tensor([float(t + shift) for t in tokens[first:]], dtype=torch.float64)
                    want = want.view(-1, *[1] * len(spec.shape)).expand(-1, *spec.shape)
                    assert torch.equal(found, kv.decode(*kv.encode(want)))
                else:
                    assert slot(cache, spec.name).read()[b].tolist() == rolling(tokens, layer)


def read_back(
    specs: LayerSpecs, manager: CacheManager, committed: Mapping[int, Sequence[int]], kv: PageFormat = WIDE
) -> None:
    """Check all requests through a call without rows."""
    rids = list(committed)
    assert [manager.length(rid) for rid in rids] == [len(tokens) for tokens in committed.values()]
    seqs = Seqs.of([0] * len(rids), [len(committed[rid]) for rid in rids])
    expect(specs, manager.pack(rids, seqs), seqs, [committed[rid] for rid in rids], kv)
    manager.commit(rids, seqs, [()] * len(rids))


@st.composite
def sequence_rows(draw: st.DrawFn) -> tuple[int, int, list[int] | None, list[int]]:
    """(definite rows, provisional rows, parent table or None for a chain, an accepted path)."""
    definite, drafts = draw(st.integers(1, 3) | st.integers(1, 40)), draw(st.integers(0, 8))
    if draw(st.booleans()) and definite + drafts <= 64:
        parents = list(range(-1, definite - 1))
        parents += [draw(st.integers(definite - 1, definite + node - 1)) for node in range(drafts)]
        table: list[int] | None = parents
    else:
        parents, table = list(range(-1, definite + drafts - 1)), None
    path: list[int] = []
    last = definite - 1
    while following := [row for row in range(definite, definite + drafts) if parents[row] == last]:
        if draw(st.integers(0, 3)) == 0:
            break
        last = draw(st.sampled_from(following))
        path.append(last)
    return definite, drafts, table, path


LATER = st.just(0) | st.integers(0, 60)


class History(RuleBasedStateMachine):
    """Random requests, steps, draft trees, cancels, preemptions and failed steps, over a pool that is too small."""

    specs: LayerSpecs = ()
    kv: PageFormat = WIDE

    def __init__(self) -> None:
        super().__init__()
        self.manager = make(self.specs, kv=self.kv)
        self.committed: dict[int, list[int]] = {}
        self.groups = list(dict.fromkeys(s.group for layer in self.specs for s in layer if s.kind == "paged"))
        self.pages: dict[int, dict[str, int]] = {}  # length of each block table, by arithmetic
        self.with_slot: set[int] = set()
        self.next_rid, self.next_token = 0, 0

    def token(self) -> int:
        self.next_token += 1
        return self.next_token % 4_999

    @precondition(lambda self: len(self.committed) < 6)
    @rule()
    def admit(self) -> None:
        self.manager.admit(self.next_rid)
        self.committed[self.next_rid], self.pages[self.next_rid] = [], dict.fromkeys(self.groups, 0)
        self.next_rid += 1

    def owned(self, group: str) -> int:
        """Pages that all requests own in a group: those of their tables, without what their windows have left."""
        window = WINDOWS.get(group, 1 << 30)
        freed = {rid: max(0, len(tokens) + 1 - window) // PAGE_SIZE for rid, tokens in self.committed.items()}
        return sum(self.pages[rid][group] - freed[rid] for rid in self.committed)

    def reserve(self, rid: int, rows: int, later: int) -> bool:
        """Reserve, and compare the outcome with what the numbers say."""
        before, length = dict(self.pages[rid]), len(self.committed[rid])
        for group in self.groups:
            end = length + rows + min(later, WINDOWS.get(group, later))
            self.pages[rid][group] = max(before[group], -(-end // PAGE_SIZE))
        fits = all(self.owned(group) <= NUM_BLOCKS - 1 for group in self.groups)
        if self.manager.pools.has_slots:
            fits = fits and len(self.with_slot | {rid}) <= NUM_SLOTS - 1
        assert self.manager.reserve(rid, rows, later_rows=later) == fits
        if not fits:
            self.pages[rid] = before
        else:
            if self.manager.pools.has_slots:
                self.with_slot.add(rid)
        return fits

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), fails=st.integers(0, 9).map(lambda n: n == 0), spare=st.integers(0, 20), later=LATER)
    def step(self, data: st.DataObject, fails: bool, spare: int, later: int) -> None:
        wanted = data.draw(st.lists(st.sampled_from(sorted(self.committed)), min_size=1, max_size=4, unique=True))
        plans = {rid: data.draw(sequence_rows()) for rid in wanted}
        # `spare`: the drafter may propose less than was reserved for it.
        rids = [rid for rid in wanted if self.reserve(rid, sum(plans[rid][:2]) + spare, later)]
        rows = [plans[rid] for rid in rids]
        seqs = Seqs.of(
            [definite + drafts for definite, drafts, _, _ in rows],
            [len(self.committed[rid]) for rid in rids],
            num_draft=[drafts for _, drafts, _, _ in rows],
            parents=[table for _, _, table, _ in rows],
            num_step=len(rids),
        )
        tokens = [[self.token() for _ in range(n)] for n in seqs.lens]
        caches = self.manager.pack(rids, seqs)
        expect(self.specs, caches, seqs, [self.committed[rid] for rid in rids], self.kv)
        forward(self.specs, caches, tokens, seqs)
        if fails:
            for rid in rids:
                self.release(rid)
            return
        paths = [path for _, _, _, path in rows]
        self.manager.commit(rids, seqs, paths)
        for rid, own, definite, path in zip(rids, tokens, seqs.definite, paths, strict=True):
            self.committed[rid] += own[:definite] + [own[row] for row in path]
            self.pages[rid] = dict.fromkeys(self.groups, -(-len(self.committed[rid]) // PAGE_SIZE))

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), preempt=st.booleans())
    def leave(self, data: st.DataObject, preempt: bool) -> None:
        rid = data.draw(st.sampled_from(sorted(self.committed)))
        self.release(rid)
        if preempt:  # admitted again, it starts from nothing
            self.manager.admit(rid)
            self.committed[rid], self.pages[rid] = [], dict.fromkeys(self.groups, 0)

    def release(self, rid: int, keep: bool = False) -> None:
        self.manager.release(rid)
        del self.committed[rid], self.pages[rid]
        self.with_slot.discard(rid)

    @invariant()
    def nothing_else(self) -> None:
        self.manager.check()
        owned = sum(self.owned(group) for group in self.groups)
        assert self.manager.free_blocks == (NUM_BLOCKS - 1) * len(self.groups) - owned
        assert self.manager.free_slots == NUM_SLOTS - 1 - len(self.with_slot)
        read_back(self.specs, self.manager, {rid: tokens for rid, tokens in self.committed.items() if tokens}, self.kv)

    def teardown(self) -> None:
        for rid in list(self.committed):
            self.manager.release(rid)
        self.manager.check()
        assert self.manager.free_blocks == self.manager.pools.num_pages == (NUM_BLOCKS - 1) * len(self.groups)
        assert self.manager.free_slots == NUM_SLOTS - 1


@pytest.mark.parametrize("model", MODELS)
def test_any_history_leaves_exactly_what_was_committed(model: str) -> None:
    machine = type(f"{model.title()}History", (History,), {"specs": MODELS[model]})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=50, stateful_step_count=40, deadline=None, database=None)
    )


@pytest.mark.parametrize("model", ["lanes", "three groups"])
@pytest.mark.parametrize("name", FORMATS)
def test_any_history_in_every_format_of_pages(name: str, model: str) -> None:
    machine = type("FormatHistory", (History,), {"specs": MODELS[model], "kv": FORMATS[name]})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=20, stateful_step_count=30, deadline=None, database=None)
    )


@pytest.mark.parametrize("name", FORMATS)
def test_declared_bytes_are_allocated(name: str) -> None:
    for specs in MODELS.values():
        manager = make(specs, kv=FORMATS[name])
        pages, pools = 0, manager.pools
        for group in dict.fromkeys(spec.group for layer in specs for spec in layer if spec.kind == "paged"):
            own = [spec for layer in specs for spec in layer if spec.kind == "paged" and spec.group == group]
            pages += NUM_BLOCKS * PAGE_SIZE * sum(spec.nbytes(FORMATS[name]) for spec in own)
        slots = NUM_SLOTS * sum(16 for layer in specs for spec in layer if spec.kind == "slot")
        assert sum(tensor.nbytes for tensor in pools.tensors) == pools.nbytes == pages + slots
    assert KEYS.nbytes(FORMATS[name]) == {"f32": 8, "bf16": 4, "int8": 2 + 4}[name]


def test_a_state_may_have_a_format_of_its_own() -> None:
    specs = ((replace(KEYS, codec="int8"), VALUES),)
    (layer,) = make(specs).pools.refs(Placement())
    assert [(x.format, x.pages.dtype) for x in layer.values() if isinstance(x, PageRef)] == [
        (FORMATS["int8"], torch.int8),
        (WIDE, torch.float64),
    ]
    with pytest.raises(UserError, match="q4_0 cannot store keys and values"):
        page_format("q4_0")
    with pytest.raises(UserError, match="unknown codec") as caught:
        page_format("int-8")
    assert "int8" in str(caught.value.try_)


def test_block_pool_counts_tables_and_refuses_without_change() -> None:
    pool = BlockPool(6)
    first, second = pool.alloc(3), pool.alloc(2)
    assert first is not None and second is not None
    assert sorted(first + second) == [1, 2, 3, 4, 5]  # never the null page
    assert pool.alloc(1) is None and pool.num_free == 0 and pool.alloc(0) == []
    pool.incref(first[:2])  # a second table shares two full pages
    pool.check([first, second, first[:2]])
    pool.release(first)
    assert [pool.ref(page) for page in first] == [1, 1, 0]
    pool.check([second, first[:2]])
    with pytest.raises(AssertionError, match="ref count"):
        pool.check([second, first[:2], first[:2]])
    with pytest.raises(AssertionError, match="leaked"):
        pool.check([second])
    pool.release(first[:2])
    assert pool.alloc(1) == [first[0]]  # used last, handed out first
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([first[1]])
    with pytest.raises(AssertionError, match="not in use"):
        pool.incref([first[1]])


def test_slot_pool_hands_out_each_slot_once_and_never_the_zero_state() -> None:
    pool = SlotPool(3)
    assert {pool.alloc(), pool.alloc()} == {1, 2} and pool.alloc() is None
    pool.check([1, 2])
    pool.release(1)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(1)
    for owned, message in (([2, 2], "two owners"), ([1, 2], "leaked"), ([], "leaked")):
        with pytest.raises(AssertionError, match=message):
            pool.check(owned)


def test_a_table_gives_back_what_it_cuts_and_what_its_window_has_left() -> None:
    pool, table = BlockPool(9), Table(PageGroup.parse("window:20"))
    assert table.missing(0) == 0 and table.missing(PAGE_SIZE) == 1 and table.missing(4 * PAGE_SIZE + 1) == 5
    table.blocks += pool.alloc(5) or []
    pages = list(table.blocks)
    where = table.slot_mapping(PAGE_SIZE - 1, 2)
    assert where == [pages[0] * PAGE_SIZE + PAGE_SIZE - 1, pages[1] * PAGE_SIZE]
    with pytest.raises(AssertionError, match="without a page"):
        table.slot_mapping(5 * PAGE_SIZE, 1)
    table.truncate(pool, 34)  # a row at position 34 sees 15 .. 34, which begin on the first page
    assert table.blocks == pages[:3] and pool.num_free == 5
    table.truncate(pool, 35)
    assert table.blocks == [0, *pages[1:3]] and table.owned == pages[1:3] and pool.num_free == 6
    pool.incref([pages[1]])  # another table has this page, too
    table.truncate(pool, 51)
    assert table.blocks == [0, 0, pages[2]] and pool.num_free == 6 and pool.ref(pages[1]) == 1
    pool.check([table.owned, [pages[1]]])
    table.truncate(pool, 0)
    assert table.blocks == [] and pool.num_free == 7
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([pages[0]])


def test_page_groups_as_text() -> None:
    assert PageGroup.parse("all") == PageGroup() and PageGroup.parse("window:4096") == PageGroup(4096)
    wrong = {"window": "how many", "window:": "at least 1", "window:0": "at least 1", "window:-3": "at least 1"}
    wrong |= {"windw:8": "did you mean window:N", "al": "did you mean all", "every": "all or window:N"}
    for text, hint in wrong.items():
        with pytest.raises(UserError) as caught:
            StateSpec(name="k", shape=(1,), kind="paged", group=text)
        assert hint in str(caught.value.why) + str(caught.value.try_), text


def test_a_state_that_layers_share_is_one_tensor_and_views_are_disjoint() -> None:
    wide = StateSpec(name="k", shape=(2,), codec="f32", kind="paged")
    specs = ((KEYS, HASH), (KEYS,), (wide, HASH))
    pools = Pools(specs, num_blocks=3, num_slots=2, kv=Plain(torch.bfloat16), state_dtype=torch.float32)
    layers = pools.refs(Placement([PagePlacement([[0]], [0])], [0], [0]))
    names = [(0, "k"), (0, "h"), (1, "k"), (2, "k"), (2, "h")]
    views = [ref.pages if isinstance(ref := layers[n][name], PageRef) else ref.states for n, name in names]
    assert [(v.dtype, tuple(v.shape)) for v in views] == [
        (torch.bfloat16, (3, PAGE_SIZE, 2)),
        (torch.float32, (2, 2)),
        (torch.bfloat16, (3, PAGE_SIZE, 2)),
        (torch.float32, (3, PAGE_SIZE, 2)),
        (torch.float32, (2, 2)),
    ]
    storages = [v.untyped_storage().data_ptr() for v in views]
    assert storages[0] == storages[2] != storages[3] and storages[1] == storages[4]
    for number, view in enumerate(views):
        assert not view.any()
        view.fill_(number + 1)
    assert all((view == number + 1).all() for number, view in enumerate(views))
    assert pools.layout.slot_bytes == 2 * 2 * 4
    assert pools.nbytes == 3 * PAGE_SIZE * (2 * 2 * 2 + 2 * 4) + 2 * pools.layout.slot_bytes
    assert pools.nbytes == sum(v.numel() * v.element_size() for v in views)


def test_slot_states_are_at_least_as_wide_as_the_activations() -> None:
    narrow = StateSpec(name="S", shape=(1,), dtype=torch.float32, kind="slot")
    for activations, stored in ((torch.bfloat16, 4), (torch.float32, 4), (torch.float64, 8)):
        pools = Pools([[narrow]], num_blocks=1, num_slots=2, kv=Plain(torch.bfloat16), state_dtype=activations)
        assert pools.layout.slot_bytes == stored


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_pages_lie_lane_by_lane_only_where_the_state_and_the_reader_want_it(shape: tuple[int, ...]) -> None:
    plain = StateSpec(name="plain", shape=shape, kind="paged")
    specs = ((plain, replace(plain, name="lanes", lanes=True)),)
    for lanes in (False, True):
        pools = Pools(specs, num_blocks=4, num_slots=1, kv=Plain(torch.float32), state_dtype=torch.float32, lanes=lanes)
        seqs, rows = Seqs.of([20]), torch.randn(20, *shape)
        slots = [*range(2 * PAGE_SIZE, 3 * PAGE_SIZE), *range(PAGE_SIZE, PAGE_SIZE + 4)]
        (refs,) = pools.refs(Placement([PagePlacement([[2, 1]], slots)], [0], [0]))
        for name, ref in refs.items():
            assert isinstance(ref, PageRef) and ref.pages.shape == (4, PAGE_SIZE, *shape)
            ref.append(rows, seqs)
            assert torch.equal(ref.read(0, seqs), rows)
            memory = ref.pages.movedim(1, -1) if lanes and name == "lanes" else ref.pages
            assert memory.is_contiguous() and torch.equal(ref.pages[1, :4], rows[16:])


@pytest.mark.parametrize("model", ["attention", "lanes"])
def test_move_reads_everything_before_it_writes(model: str) -> None:
    pools = make(MODELS[model]).pools
    refs = [ref for layer in pools.refs(Placement([PagePlacement([[0]], [0])], [0], [0])) for ref in layer.values()]
    views, want = [ref.pages for ref in refs if isinstance(ref, PageRef)], []
    assert len(views) == 4
    for view in views:
        view.copy_(torch.randint(1000, view.shape))
        rows = view.flatten(0, 1).clone()
        rows[[16, 17, 40]] = rows[[17, 18, 16]]
        want.append(rows.view(view.shape))
    pools.move(0, [17, 18, 16], [16, 17, 40])
    assert all(torch.equal(view, expected) for view, expected in zip(views, want, strict=True))


def test_copy_slot_copies_every_layer_and_never_onto_the_zero_state() -> None:
    pools = make(MODELS["hybrid"]).pools
    layers = pools.refs(Placement([PagePlacement([[1]], [1])], [1], [1]))
    refs = [ref for layer in layers for ref in layer.values() if isinstance(ref, SlotRef)]
    assert len(refs) == 2
    for number, ref in enumerate(refs):
        ref.write(torch.full((1, 2), number + 1.0))
    pools.copy_slot(1, 3)
    for number, ref in enumerate(refs):
        assert ref.states[:, 0].tolist() == [0, number + 1, 0, number + 1]
    with pytest.raises(AssertionError, match="zero state"):
        pools.copy_slot(1, 0)


def test_what_a_request_leaves_behind_never_reaches_the_next_one() -> None:
    """NaN of a released request must not come back through padding: 0 * NaN is NaN."""
    specs = MODELS["hybrid"]
    manager = make(specs, num_blocks=5, num_slots=3)
    manager.admit(0)
    seqs = Seqs.of([4 * PAGE_SIZE])
    assert manager.reserve(0, 4 * PAGE_SIZE)
    forward(specs, manager.pack([0], seqs), [[torch.nan] * seqs.num_rows], seqs)
    manager.commit([0], seqs, [()])
    manager.release(0)
    seqs = Seqs.of([1, PAGE_SIZE + 1])
    tokens = [[7], list(range(PAGE_SIZE + 1))]
    for rid, rows in zip((1, 2), seqs.lens, strict=True):
        manager.admit(rid)
        assert manager.reserve(rid, rows)
    caches = manager.pack([1, 2], seqs)
    expect(specs, caches, seqs, [[], []])  # zero entry states
    forward(specs, caches, tokens, seqs)
    for cache, name in ((caches[1], "k"), (caches[1], "v"), (caches[2], "k")):
        assert paged(cache, name).read_padded(seqs).isfinite().all()
    manager.commit([1, 2], seqs, [(), ()])
    read_back(specs, manager, {1: tokens[0], 2: tokens[1]})
    manager.check()


def test_a_step_that_was_not_committed_cannot_be_built_upon() -> None:
    manager = make(MODELS["hybrid"])
    seqs = Seqs.of([2, 3], num_draft=[0, 1], num_step=2)
    for rid in (0, 1):
        manager.admit(rid)
        assert manager.reserve(rid, 3)
    manager.pack([0, 1], seqs)
    with pytest.raises(AssertionError, match="was not committed"):
        manager.pack([0], Seqs.of([2]))
    with pytest.raises(AssertionError, match="only the packed step"):
        manager.commit([0], Seqs.of([2]), [()])
    with pytest.raises(AssertionError, match="accepted path"):
        manager.commit([0, 1], seqs, [(), (1,)])  # row 1 is definite
    manager.release(1)
    manager.admit(1)
    with pytest.raises(AssertionError, match="admitted again"):
        manager.commit([0, 1], seqs, [(), ()])
    manager.release(0)
    manager.check()
    assert manager.length(1) == 0


def test_pack_refuses_what_was_not_reserved_and_wrong_contexts() -> None:
    manager = make(MODELS["hybrid"])
    manager.admit(0)
    with pytest.raises(AssertionError, match="admitted twice"):
        manager.admit(0)
    with pytest.raises(AssertionError, match="without a page"):
        manager.pack([0], Seqs.of([1]))
    assert manager.reserve(0, PAGE_SIZE)
    with pytest.raises(AssertionError, match="without a page"):
        manager.pack([0], Seqs.of([PAGE_SIZE + 1]))
    with pytest.raises(AssertionError, match="contexts differ"):
        manager.pack([0], Seqs.of([1], [1]))
    recurrent = make(MODELS["recurrent"])
    recurrent.admit(0)
    with pytest.raises(AssertionError, match="reserve before pack"):
        recurrent.pack([0], Seqs.of([1]))


def test_a_page_in_two_tables_is_never_written() -> None:
    manager = make(MODELS["attention"])
    manager.admit(0)
    assert manager.reserve(0, 1)
    (page,) = manager.ledger.holdings[0].tables[0].blocks
    manager.ledger.blocks[0].incref([page])  # as a second table would
    with pytest.raises(AssertionError, match="shared page"):
        manager.pack([0], Seqs.of([1]))


def test_check_sees_a_written_zero_state() -> None:
    manager = make(MODELS["hybrid"])
    refs = manager.pools.refs(Placement([PagePlacement([[0]], [0])], [0], [0]))
    slot(refs[0], "h").write(torch.ones(1, 2))
    with pytest.raises(AssertionError, match="zero state was written"):
        manager.check()


def test_models_take_only_the_memory_that_they_declare() -> None:
    recurrent = make(MODELS["recurrent"], num_blocks=1)
    recurrent.admit(0)
    assert recurrent.reserve(0, 10_000) and recurrent.free_slots == NUM_SLOTS - 2
    attention = make(MODELS["attention"], num_slots=1)
    attention.admit(0)
    assert attention.reserve(0, 10) and attention.free_blocks == NUM_BLOCKS - 2


KV = StateSpec(name="k", shape=(4, 64), kind="paged")  # 512 bytes per token in bf16
STATE = StateSpec(name="S", shape=(64, 16), dtype=torch.float32, kind="slot")  # 4 KiB


@pytest.mark.parametrize("specs", [((KV,), (KV,)), ((STATE,), (STATE,)), ((STATE,), (KV,), (STATE,))])
@pytest.mark.parametrize("context", [1, 16, 17, 1000])
@pytest.mark.parametrize("max_seqs", [1, 3, 64])
def test_sizes_fit_the_memory_and_are_capped(specs: LayerSpecs, context: int, max_seqs: int) -> None:
    pages = -(-context // PAGE_SIZE)
    for memory in (1 << 14, 1 << 17, 1 << 20, 3_000_001, 1 << 32):
        try:
            fits = size_pools(
                layout_of(specs, Plain(torch.bfloat16), torch.bfloat16),
                context=context,
                max_seqs=max_seqs,
                max_rows=512,
                memory_bytes=memory,
            )
        except FitError:
            # One sequence, the null page and the zero state really are more than there is.
            paged_layers, slot_layers = (sum(kind in layer for layer in specs) for kind in (KV, STATE))
            assert memory < (pages + 1) * PAGE_SIZE * 512 * paged_layers + 2 * 4096 * slot_layers
            continue
        pools = Pools(
            specs,
            num_blocks=fits.num_blocks,
            num_slots=fits.num_slots,
            kv=Plain(torch.bfloat16),
            state_dtype=torch.bfloat16,
        )
        num_blocks, num_slots = (fits.num_blocks or (1,))[0], fits.num_slots
        assert pools.nbytes <= memory
        manager = CacheManager(pools)
        manager.admit(0)
        assert manager.reserve(0, context)
        assert num_blocks <= max_seqs * pages + 1 and num_slots <= max_seqs + 1
        if memory == 1 << 32:
            assert num_blocks == (max_seqs * pages + 1 if pools.groups else 1)
            assert num_slots == (max_seqs + 1 if pools.has_slots else 1)


def test_too_little_memory_is_refused_with_numbers() -> None:
    with pytest.raises(FitError) as caught:
        size_pools(
            layout_of([[KV]], Plain(torch.bfloat16), torch.bfloat16),
            context=8192,
            max_seqs=4,
            max_rows=512,
            memory_bytes=3 << 20,
        )
    assert caught.value.exit_code == 4
    text = str(caught.value)
    # 513 pages of 8 KiB against 384: one of these is the null page.
    assert "8,192 tokens" in text and "4.01 MiB" in text and "3.00 MiB" in text and "512 bytes per token" in text
    assert "at most 6,128 tokens" in text
    how = {"context": 6128, "max_seqs": 4, "max_rows": 512, "memory_bytes": 3 << 20}
    fits = size_pools(layout_of([[KV]], Plain(torch.bfloat16), torch.bfloat16), **how)
    assert (fits.num_blocks, fits.num_slots) == ((384,), 1)


def test_two_states_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two states of one name"):
        size_pools(
            layout_of([[KV, KV]], Plain(torch.float32), torch.float32),
            context=1,
            max_seqs=1,
            max_rows=1,
            memory_bytes=1 << 30,
        )


@pytest.mark.parametrize("window", [1, 20, 300])
def test_a_window_takes_pages_for_the_window_and_not_for_the_context(window: int) -> None:
    """Prompts in pieces, trees that are rejected, rows in a row: never more than the window and the rows of a step."""
    group, max_rows = f"window:{window}", 70
    specs = ((replace(KEYS, group=group),),)
    most = -(-(window + max_rows) // PAGE_SIZE) + 1
    manager = make(specs, num_blocks=most + 1, num_slots=1)
    WINDOWS[group] = window
    committed: list[int] = []
    manager.admit(0)
    for turn in range(60):
        rows, drafts = (max_rows, 0) if turn % 3 == 0 else (1, (turn * 7) % 30)
        parents = None if drafts % 2 else [[*range(-1, rows - 1), *[rows - 1] * drafts]]
        path = [rows + drafts - 1] if drafts and parents else []
        assert manager.reserve(0, rows + drafts, later_rows=window + max_rows - rows - drafts if turn == 0 else 0)
        seqs = Seqs.of(
            [rows + drafts], [len(committed)], num_draft=[drafts], parents=parents if drafts else None, num_step=1
        )
        caches, tokens = manager.pack([0], seqs), [len(committed) + i for i in range(rows + drafts)]
        expect(specs, caches, seqs, [committed])
        forward(specs, caches, [tokens], seqs)
        manager.commit([0], seqs, [path])
        committed += tokens[:rows] + [tokens[row] for row in path]
        manager.check()
        assert manager.pools.num_pages - manager.free_blocks <= -(-(window - 1) // PAGE_SIZE) + 1
    assert len(committed) > 1400


WINDOW = replace(KV, group="window:1000")  # 512 bytes per token


@pytest.mark.parametrize(("specs", "growing"), [(((KV,), (WINDOW,)), 8192), (((WINDOW,), (STATE,), (WINDOW,)), 0)])
@pytest.mark.parametrize("max_seqs", [1, 5])
def test_sizes_count_a_window_once(specs: LayerSpecs, growing: int, max_seqs: int) -> None:
    """growing: bytes of a page of the states that keep everything."""
    types, max_rows = (Plain(torch.bfloat16), torch.bfloat16), 100
    windows, slots = sum(WINDOW in layer for layer in specs) * 8192, sum(STATE in layer for layer in specs) * 4096
    most = 1 + -(-1100 // PAGE_SIZE)

    def need(pages: int) -> int:
        return (pages + 1) * growing + (min(pages, most) + 1) * windows + 2 * slots

    for pages in (1, 50, most, 100, 5000):
        assert sequence_bytes(layout_of(specs, *types), pages * PAGE_SIZE, max_rows) == need(pages)
        longest = longest_context(layout_of(specs, *types), max_rows, need(pages))
        assert longest == (pages * PAGE_SIZE if growing or pages < most else 1 << 62)
    for context in (40, 1000, 100_000):
        pages = -(-context // PAGE_SIZE)
        for memory in (need(pages), need(pages) + 3_000_000, 1 << 40):
            how = {"context": context, "max_seqs": max_seqs, "max_rows": max_rows, "memory_bytes": memory}
            fits = size_pools(layout_of(specs, *types), **how)
            pools = Pools(
                specs,
                num_blocks=fits.num_blocks,
                num_slots=fits.num_slots,
                kv=types[0],
                state_dtype=types[1],
                device="meta",
            )
            assert pools.nbytes <= memory
            for group, blocks in zip(pools.groups, fits.num_blocks, strict=True):
                one = pages if group.window is None else min(pages, most)
                assert 1 + one <= blocks <= 1 + max_seqs * one
                assert memory < 1 << 40 or blocks == 1 + max_seqs * one
        with pytest.raises(FitError, match="needs"):
            size_pools(
                layout_of(specs, *types), context=context, max_seqs=1, max_rows=max_rows, memory_bytes=need(pages) - 1
            )


RESIDENT = """
import mmap
from dataclasses import replace
from pathlib import Path
import torch
from stretto.core.page_format import Plain
from stretto.cache.manager import CacheManager
from stretto.cache.pools import Pools
from stretto.core.seqs import Seqs
from stretto.core.state import StateSpec

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

torch.set_num_threads(1)
specs = [[StateSpec(name=n, shape=(3, 64), kind="paged") for n in "kv"]] * 30
specs += [[StateSpec(name="S", shape=(64, 64), kind="slot")]] * 4
before = resident()
pools = Pools(specs, num_blocks=2200, num_slots=4096, kv=Plain(torch.bfloat16), state_dtype=torch.float32)
manager = CacheManager(pools)
manager.admit(0)
print(pools.nbytes, resident() - before)
assert manager.reserve(0, 64)
for cache in manager.pack([0], Seqs.of([64])):
    for name, ref in cache.items():
        if name == "S":
            ref.write(ref.read() + 1)
        else:
            ref.append(torch.ones(64, 3, 64), Seqs.of([64]))
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm (Linux)")
def test_memory_is_taken_when_it_is_used() -> None:
    ran = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True, timeout=120)
    nominal, untouched, touched = (int(word) for word in ran.stdout.split())
    assert nominal > 1 << 30
    assert untouched < 8 << 20
    assert touched < 50 << 20  # 64 tokens of 22.5 KiB, one state of 64 KiB, and what torch loads at first use
