"""`CacheManager`: the engine's only door to the cache.

    admit -> (reserve -> pack -> forward -> commit)* -> release

`reserve` finds memory for the rows of a step, `pack` says where they go, the forward pass writes them, and `commit`
decides what of them stays: it is the only writer of committed state and leaves one canonical location, token p of a
request at position p of its block table, its fixed-size state in its own slot. A step that fails between `pack` and
`commit` may have overwritten slots, so its requests can only be released (and admitted again).

Every page group has its own pool, and every request a block table in each. A window group gives back, at `commit`, the
pages that no later row can see: only committed tokens move the window, so drafts may be rejected at no cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.cache.blocks import BlockPool, SlotPool
from stretto.cache.pools import Caches, PagePlacement, Placement, Pools
from stretto.cache.tables import Table
from stretto.core.pages import PAGE_SIZE, num_pages
from stretto.core.seqs import Accepted, Seqs


@dataclass(slots=True)
class _Request:
    tables: list[Table]  # one per page group
    length: int = 0  # tokens committed
    slot: int | None = None
    open: bool = False  # packed, not yet committed


@dataclass(frozen=True, slots=True)
class _Step:
    rids: tuple[int, ...]
    seqs: Seqs
    caches: Caches


class CacheManager:
    """Pages and slots of all requests, by request id. `seqs` of a call lists its requests in the order of `rids`.

    clears: whether new pages are cleared, for readers that look at a page beyond the tokens it holds.
    """

    def __init__(self, pools: Pools, *, clears: bool = True) -> None:
        self.pools, self._clears = pools, clears
        self._blocks = [BlockPool(num_blocks) for num_blocks in pools.num_blocks]
        self._slots = SlotPool(pools.num_slots)
        self._requests: dict[int, _Request] = {}
        self._step: _Step | None = None

    @property
    def free_blocks(self) -> int:
        """Free pages of all groups."""
        return sum(pool.num_free for pool in self._blocks)

    @property
    def free_slots(self) -> int:
        return self._slots.num_free

    def length(self, rid: int) -> int:
        """Tokens committed."""
        return self._requests[rid].length

    def admit(self, rid: int) -> None:
        """A request without tokens; it takes memory from its first `reserve` on."""
        assert rid not in self._requests, f"request {rid} is admitted twice"
        self._requests[rid] = _Request([Table(group) for group in self.pools.groups])

    def reserve(self, rid: int, num_rows: int, *, later_rows: int = 0) -> bool:
        """Memory for the next `num_rows` rows, provisional ones included, in all groups. False, and nothing changed, if
        one has none.

        later_rows: that later steps will add, for which there must be room, too. What a step does not keep goes back at
        its `commit`.
        """
        request = self._requests[rid]
        needs_slot = self.pools.has_slots and request.slot is None
        end = request.length + num_rows
        missing = [table.missing(end + table.group.rows_ahead(later_rows)) for table in request.tables]
        if needs_slot and not self._slots.num_free:
            return False
        if any(n > pool.num_free for n, pool in zip(missing, self._blocks, strict=True)):
            return False
        for group, (table, pool, n) in enumerate(zip(request.tables, self._blocks, missing, strict=True)):
            pages = pool.alloc(n)
            assert pages is not None
            table.blocks += pages
            # Padded reads multiply what earlier owners left behind by zero: one NaN of theirs would become ours.
            if self._clears:
                self.pools.clear(group, pages)
        if needs_slot:
            request.slot = self._slots.alloc()
        return True

    def pack(self, rids: Sequence[int], seqs: Seqs) -> Caches:
        """One cache per layer for a forward pass over `seqs`; its rows must have been reserved.

        The caches are valid until `commit`. A request without context starts from the zero state.
        """
        requests = [self._requests[rid] for rid in rids]
        assert len(set(rids)) == len(rids) == seqs.num_seqs
        assert not any(request.open for request in requests), "the last step of a request was not committed"
        assert seqs.contexts == tuple(r.length for r in requests), "contexts differ from what the cache holds"
        placements = []
        for group, pool in enumerate(self._blocks):
            mapping: list[int] = []
            for request, rows in zip(requests, seqs.lens, strict=True):
                table, first = request.tables[group], request.length
                written = table.blocks[first // PAGE_SIZE : num_pages(first + rows)]
                assert all(pool.ref(page) == 1 for page in written), "a shared page would be written"
                mapping += table.slot_mapping(first, rows)
            placements.append(PagePlacement([list(request.tables[group].blocks) for request in requests], mapping))
        slots = [self._slot(request) for request in requests]
        source = [slot if request.length else 0 for slot, request in zip(slots, requests, strict=True)]
        caches = Caches(self.pools, Placement(placements, source, slots))
        for request in requests:
            request.open = True
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
        # also where no state is advanced: it checks the paths
        accepted = Accepted.of(seqs, paths) if self.pools.has_slots or any(paths) else None
        requests = [self._requests[rid] for rid in rids]
        assert all(request.open for request in requests), "a request of this step was admitted again"
        for group in range(len(self._blocks)):
            self._move(group, requests, seqs, paths)
        for slot in step.caches.slots:
            slot.commit(accepted)
        for request, context, definite, path in zip(requests, seqs.contexts, seqs.definite, paths, strict=True):
            request.length = context + definite + len(path)
            self._truncate(request, request.length)
            request.open = False
        self._step = None

    def release(self, rid: int) -> None:
        """Give everything of a request back. A step that was packed with it can no longer be committed."""
        request = self._requests.pop(rid)
        self._truncate(request, 0)
        if request.slot is not None:
            self._slots.release(request.slot)

    def check(self) -> None:
        """Assert that nothing leaked, nothing has two owners, and null page and zero state are untouched."""
        requests = self._requests.values()
        for group, pool in enumerate(self._blocks):
            tables = [request.tables[group] for request in requests]
            pool.check([table.owned for table in tables])
            for table, request in zip(tables, requests, strict=True):
                assert 0 <= request.length <= len(table.blocks) * PAGE_SIZE, "committed tokens without a page"
                assert not any(table.blocks[: table.num_freed]), "a freed page is still in a table"
                assert table.num_freed <= table.group.first_page(request.length), "a page was freed too early"
        self._slots.check([request.slot for request in requests if request.slot is not None])
        for request in requests:
            assert not (self.pools.has_slots and request.length) or request.slot is not None, "a state without a slot"
        self.pools.check()

    def _truncate(self, request: _Request, num_tokens: int) -> None:
        for table, pool in zip(request.tables, self._blocks, strict=True):
            table.truncate(pool, num_tokens)

    def _move(self, group: int, requests: Sequence[_Request], seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
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
            self.pools.move(group, self.pools.index(source), self.pools.index(destination))

    def _slot(self, request: _Request) -> int:
        assert not self.pools.has_slots or request.slot is not None, "reserve before pack"
        return request.slot or 0
