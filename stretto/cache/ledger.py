"""`Ledger`: which sequence has which pages and which slot. Integers only, no torch.

`CacheManager` keeps one beside the memory itself; the simulator keeps one and nothing else, so that both find room, or
none, in the same steps.

Every page group has its own pool, and every sequence a block table in each. A window group gives back the pages that
no later row can see when tokens are committed: only committed tokens move the window, so drafts may be rejected at no
cost. What a sequence shares with others is the business of `PrefixCache`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.cache.blocks import BlockPool, SlotPool
from stretto.cache.prefix import check
from stretto.cache.prefix_cache import PrefixCache, Reuse, Standing
from stretto.cache.tables import Table
from stretto.core.pages import PAGE_SIZE, PageGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What there is to give. num_blocks: pages per group, the null page included. num_slots: the zero state included;
    has_slots: whether sequences need one."""

    groups: tuple[PageGroup, ...]
    num_blocks: tuple[int, ...]
    num_slots: int
    has_slots: bool


@dataclass(slots=True)
class Holding:
    """What one sequence has: a block table per page group, a slot, and how many tokens are committed. standing: where
    its text stands in the prefix cache, None = it is not shared."""

    tables: list[Table]
    length: int = 0
    slot: int | None = None
    standing: Standing | None = None

    @property
    def source(self) -> int:
        """The slot that its next step starts from; 0 = the zero state."""
        if self.standing is not None and self.standing.source:
            return self.standing.source
        return (self.slot or 0) if self.length else 0


class Ledger:
    """Sequences by number. reuse: how texts are reused, None = not at all."""

    def __init__(self, room: Room, reuse: Reuse | None = None) -> None:
        self.room = room
        self.blocks = [BlockPool(num_blocks) for num_blocks in room.num_blocks]
        self.slots = SlotPool(room.num_slots)
        self.holdings: dict[int, Holding] = {}
        states = self.slots if room.has_slots else None
        self.prefixes = None if reuse is None else PrefixCache(reuse, room.groups, self.blocks, states)

    @property
    def free_blocks(self) -> int:
        """Pages of all groups that no sequence has."""
        return sum(pool.num_free + pool.num_idle for pool in self.blocks)

    @property
    def free_slots(self) -> int:
        """Slots that neither a sequence nor a checkpoint has."""
        return self.slots.num_free

    def length(self, rid: int) -> int:
        """Tokens committed."""
        return self.holdings[rid].length

    def admit(self, rid: int, tokens: Sequence[int] | None = None, space: str = "", *, fresh: bool = False) -> int:
        """A sequence, and how many of its tokens are there already; it takes memory from its first `reserve` on.

        tokens: its text so far, a list that grows with it. space: texts of different spaces share nothing. fresh: it
        leaves what it has to others, and takes nothing.
        """
        assert rid not in self.holdings, f"request {rid} is admitted twice"
        holding = self.holdings[rid] = Holding([Table(group) for group in self.room.groups])
        if tokens is not None and self.prefixes is not None:
            holding.standing = self.prefixes.admit(holding.tables, tokens, space, fresh=fresh)
            holding.length = holding.standing.start
        return holding.length

    def is_coming(self, tokens: Sequence[int] | None, space: str) -> bool:
        """Whether a running prompt is about to compute much of a text that waits."""
        if tokens is None or self.prefixes is None:
            return False
        running = ((one.standing, one.length) for one in self.holdings.values() if one.standing is not None)
        return self.prefixes.is_coming(tokens, space, running)

    def beginning(self, rid: int) -> list[int]:
        """Numbers that stand for the beginning of its text: who begins alike sorts side by side."""
        standing = self.holdings[rid].standing
        return standing.marks if standing is not None else []

    def next_cut(self, rid: int) -> int | None:
        """Where the next piece of a prompt must end at the latest."""
        standing = self.holdings[rid].standing
        return standing.cuts[0] if standing is not None and standing.cuts else None

    def reserve(self, rid: int, num_rows: int, *, later_rows: int = 0) -> bool:
        """Memory for the next `num_rows` rows, provisional ones included, in all groups. False, and nothing changed but
        what prefixes hold, if one has none.

        later_rows: that later steps will add, for which there must be room, too. What a step does not keep goes back
        when it is committed.
        """
        holding = self.holdings[rid]
        needs_slot = self.room.has_slots and holding.slot is None
        end = holding.length + num_rows
        missing = [table.missing(end + table.group.rows_ahead(later_rows)) for table in holding.tables]
        if any(n > pool.num_free + pool.num_idle for n, pool in zip(missing, self.blocks, strict=True)):
            return False
        if self.prefixes is not None:
            for group, (pool, n) in enumerate(zip(self.blocks, missing, strict=True)):
                self.prefixes.free_pages(group, n)
                if n > pool.num_free:
                    return False
        if needs_slot and not (self.slots.num_free or (self.prefixes is not None and self.prefixes.free_slot())):
            return False
        for table, pool, n in zip(holding.tables, self.blocks, missing, strict=True):
            table.blocks += pool.alloc(n) or []
        if needs_slot:
            holding.slot = self.slots.alloc()
        return True

    def copies(self, rid: int) -> list[tuple[int, list[int], list[int]]]:
        """Token rows that a sequence must have copied to its own pages before its next step, once: per page group,
        where from and where to (page * PAGE_SIZE + offset)."""
        holding = self.holdings[rid]
        if holding.standing is None or self.prefixes is None or holding.standing.tail is None:
            return []
        return self.prefixes.take_tail(holding.standing, holding.tables)

    def advance(self, rid: int, num_rows: int) -> None:
        """The next `num_rows` rows are committed; what was reserved beyond them goes back."""
        holding = self.holdings[rid]
        holding.length += num_rows
        if (standing := holding.standing) is not None and self.prefixes is not None:
            is_cut = self.next_cut(rid) == holding.length
            self.prefixes.publish(standing, holding.tables, holding.length)
            if is_cut and holding.slot is not None:
                holding.slot = self.prefixes.checkpoint(standing, holding.length, holding.slot) or holding.slot
        self._truncate(holding, holding.length)

    def release(self, rid: int, *, keep: bool = True) -> None:
        """Give everything of a sequence back. keep: what it has is whole, and may be left to others."""
        holding = self.holdings.pop(rid)
        taken = False
        if holding.standing is not None and self.prefixes is not None:
            taken = self.prefixes.leave(holding.standing, holding.tables, holding.length, holding.slot, keep=keep)
        for table, pool in zip(holding.tables, self.blocks, strict=True):
            pool.release(table.owned)
        if holding.slot is not None and not taken:
            self.slots.release(holding.slot)
        if self.prefixes is not None:
            self.prefixes.trim()

    def check(self) -> None:
        """Assert that nothing leaked and nothing has two owners."""
        holdings: Sequence[Holding] = list(self.holdings.values())
        nodes = [] if self.prefixes is None else list(self.prefixes.tree.nodes)
        for group, pool in enumerate(self.blocks):
            tables = [holding.tables[group] for holding in holdings]
            tails = [one.standing.tail for one in holdings if one.standing is not None]
            pinned = [[tail.pages[group]] for tail in tails if tail is not None]
            pool.check([*(table.owned for table in tables), *pinned], [n.pages[group] for n in nodes if n.pages[group]])
            for table, holding in zip(tables, holdings, strict=True):
                is_waiting = holding.standing is not None and holding.standing.tail is not None
                assert 0 <= holding.length - is_waiting * (PAGE_SIZE - 1) <= len(table.blocks) * PAGE_SIZE, (
                    "committed tokens without a page"
                )
                assert not any(table.blocks[: table.num_freed]), "a freed page is still in a table"
                assert table.num_freed <= table.group.first_page(holding.length), "a page was freed too early"
        owned = [holding.slot for holding in holdings if holding.slot is not None]
        self.slots.check([*owned, *(node.slot for node in nodes if node.slot)])
        for holding in holdings:
            assert not (self.room.has_slots and holding.length) or holding.source, "a state without a slot"
        if self.prefixes is not None:
            check(self.prefixes.tree)

    def _truncate(self, holding: Holding, num_tokens: int) -> None:
        for table, pool in zip(holding.tables, self.blocks, strict=True):
            table.truncate(pool, num_tokens)
