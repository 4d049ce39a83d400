"""`CacheManager`: the engine's only door to the cache.

    admit -> (reserve -> pack -> forward -> commit)* -> release

`reserve` finds memory for the rows of a step, `pack` says where they go, the forward pass writes them, and `commit`
decides what of them stays: it is the only writer of committed state and leaves one canonical location, token p of a
request at position p of its block table, its fixed-size state in its own slot. A step that fails between `pack` and
`commit` may have overwritten slots, so its requests can only be released (and admitted again).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stretto.cache.layout import PoolLayout
from stretto.cache.ledger import Holding, Ledger, Room
from stretto.cache.placement import PagePlacement, Placed, Placement
from stretto.cache.prefix_cache import Reuse
from stretto.core.pages import PAGE_SIZE, num_pages
from stretto.core.seqs import Accepted, Seqs, check_paths


class Memory(Protocol):
    """The memory that is managed: `Pools`, or `PoolMemory`."""

    @property
    def layout(self) -> PoolLayout: ...
    @property
    def room(self) -> Room: ...
    @property
    def has_slots(self) -> bool: ...
    def caches(self, placement: Placement) -> Placed: ...
    def move(self, group: int, source: Sequence[int], destination: Sequence[int]) -> None: ...
    def clear(self, group: int, pages: Sequence[int]) -> None: ...
    def read_units(self, number: int, units: Sequence[int]) -> bytes: ...
    def write_units(self, number: int, units: Sequence[int], data: "bytes | memoryview") -> None: ...
    def check(self) -> None: ...


def num_shared(tables: Sequence[Sequence[int]], contexts: Sequence[int]) -> list[int] | None:
    """Per sequence, how many of its first keys lie on the pages of the one before it; None: no two share a page.

    tables: per sequence, its pages; contexts: how many keys it holds.
    """
    found = [0] * len(tables)
    for b in range(1, len(tables)):
        before, own = tables[b - 1], tables[b]
        if before and own and before[0] == own[0] != 0:
            pages = next((i for i, (x, y) in enumerate(zip(before, own, strict=False)) if x != y), len(own))
            found[b] = min(pages * PAGE_SIZE, contexts[b - 1], contexts[b])
    return found if any(found) else None


@dataclass(frozen=True, slots=True)
class _Step:
    rids: tuple[int, ...]
    seqs: Seqs
    caches: Placed


class CacheManager:
    """Pages and slots of all requests, by request id. `seqs` of a call lists its requests in the order of `rids`.

    clears: whether new pages are cleared, for readers that look at a page beyond the tokens it holds. reuse: how texts
    are reused, None = not at all.
    """

    def __init__(self, pools: Memory, *, clears: bool = True, reuse: Reuse | None = None) -> None:
        self.pools, self.reuse, self._clears = pools, reuse, clears
        self.ledger = Ledger(pools.room, reuse)
        self._open: set[int] = set()  # packed, not yet committed
        self._step: _Step | None = None

    @property
    def free_blocks(self) -> int:
        """Free pages of all groups."""
        return self.ledger.free_blocks

    @property
    def free_slots(self) -> int:
        return self.ledger.free_slots

    def length(self, rid: int) -> int:
        """Tokens committed."""
        return self.ledger.length(rid)

    def admit(self, rid: int, tokens: Sequence[int] | None = None, space: str = "", *, fresh: bool = False) -> int:
        """A request, and how many of its tokens the cache has: see `Ledger.admit`."""
        return self.ledger.admit(rid, tokens, space, fresh=fresh)

    def is_coming(self, tokens: Sequence[int] | None, space: str) -> bool:
        """Whether a running prompt is about to compute much of a text that waits."""
        return self.ledger.is_coming(tokens, space)

    def beginning(self, rid: int) -> list[int]:
        """Numbers that stand for the beginning of its text: see `Ledger.beginning`."""
        return self.ledger.beginning(rid)

    def next_cut(self, rid: int) -> int | None:
        """Where the next piece of a prompt must end at the latest."""
        return self.ledger.next_cut(rid)

    def reserve(self, rid: int, num_rows: int, *, later_rows: int = 0) -> bool:
        """Memory for the next `num_rows` rows: see `Ledger.reserve`."""
        tables = self.ledger.holdings[rid].tables
        before = [len(table.blocks) for table in tables]
        found = self.ledger.reserve(rid, num_rows, later_rows=later_rows)
        if self._clears:  # padded reads multiply what earlier owners left behind by zero: one NaN would become ours
            for group, (table, held) in enumerate(zip(tables, before, strict=True)):
                self.pools.clear(group, table.blocks[held:])
        if found:
            for copy in self.ledger.copies(rid):
                self.pools.move(*copy)
        return found

    def pack(self, rids: Sequence[int], seqs: Seqs) -> Placed:
        """One cache per layer for a forward pass over `seqs`; its rows must have been reserved.

        The caches are valid until `commit`. A request without context starts from the zero state.
        """
        requests = [self.ledger.holdings[rid] for rid in rids]
        assert len(set(rids)) == len(rids) == seqs.num_seqs
        assert self._open.isdisjoint(rids), "the last step of a request was not committed"
        assert seqs.contexts == tuple(r.length for r in requests), "contexts differ from what the cache holds"
        placements = []
        for group, pool in enumerate(self.ledger.blocks):
            mapping: list[int] = []
            for request, rows in zip(requests, seqs.lens, strict=True):
                table, first = request.tables[group], request.length
                written = table.blocks[first // PAGE_SIZE : num_pages(first + rows)]
                is_own = all(pool.ref(page) == 1 and not pool.is_kept(page) for page in written)
                assert is_own, "a shared page would be written"
                mapping += table.slot_mapping(first, rows)
            tables = [list(request.tables[group].blocks) for request in requests]
            shared = None if self.reuse is None else num_shared(tables, seqs.contexts)
            placements.append(PagePlacement(tables, mapping, num_shared=shared))
        slots = [self._slot(request) for request in requests]
        caches = self.pools.caches(Placement(placements, [request.source for request in requests], slots))
        self._open.update(rids)
        self._step = _Step(tuple(rids), seqs, caches)
        return caches

    def commit(self, rids: Sequence[int], seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        """Keep the definite rows of the step that was packed last and one root path of provisional rows per request.

        paths: per request, row numbers inside its sequence, from the pending row's child downwards; empty = none.
        """
        step = self._step
        assert step is not None and step.rids == tuple(rids) and step.seqs == seqs, (
            "only the packed step can be committed"
        )
        check_paths(seqs, paths)
        requests = [self.ledger.holdings[rid] for rid in rids]
        assert self._open.issuperset(rids), "a request of this step was admitted again"
        for group in range(len(self.ledger.blocks)):
            self._move(group, requests, seqs, paths)
        if step.caches.slots:
            accepted = Accepted.of(seqs, paths)
            for slot in step.caches.slots:
                slot.commit(accepted)
        for rid, definite, path in zip(rids, seqs.definite, paths, strict=True):
            self.ledger.advance(rid, definite + len(path))
        self._open.difference_update(rids)
        self._step = None

    def release(self, rid: int, *, keep: bool = True) -> None:
        """Give everything of a request back. A step that was packed with it can no longer be committed. keep: what the
        cache has of it may be left to others."""
        self.ledger.release(rid, keep=keep and rid not in self._open)
        self._open.discard(rid)

    def check(self) -> None:
        """Assert that nothing leaked, nothing has two owners, and null page and zero state are untouched."""
        self.ledger.check()
        self.pools.check()

    def _move(self, group: int, requests: Sequence[Holding], seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        """Accepted tree rows move from where they were verified to the positions they take (chains lie there)."""
        source: list[int] = []
        destination: list[int] = []
        for request, context, definite, path in zip(requests, seqs.contexts, seqs.definite, paths, strict=True):
            where = request.tables[group].slot_mapping(context, max(path, default=-1) + 1)
            for row, kept in enumerate(path, start=definite):
                if row != kept:
                    source.append(where[kept])
                    destination.append(where[row])
        if source:
            self.pools.move(group, source, destination)

    def _slot(self, request: Holding) -> int:
        assert not self.pools.has_slots or request.slot is not None, "reserve before pack"
        return request.slot or 0
