"""`Ledger`: which sequence has which pages and which slot. Integers only, no torch.

`CacheManager` keeps one beside the memory itself; the simulator keeps one and nothing else, so that both find room, or
none, in the same steps.

Every page group has its own pool, and every sequence a block table in each. A window group gives back the pages that
no later row can see when tokens are committed: only committed tokens move the window, so drafts may be rejected at no
cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.cache.blocks import BlockPool, SlotPool
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
    """What one sequence has: a block table per page group, a slot, and how many tokens are committed."""

    tables: list[Table]
    length: int = 0
    slot: int | None = None


class Ledger:
    """Sequences by number."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.blocks = [BlockPool(num_blocks) for num_blocks in room.num_blocks]
        self.slots = SlotPool(room.num_slots)
        self.holdings: dict[int, Holding] = {}

    @property
    def free_blocks(self) -> int:
        """Free pages of all groups."""
        return sum(pool.num_free for pool in self.blocks)

    @property
    def free_slots(self) -> int:
        return self.slots.num_free

    def length(self, rid: int) -> int:
        """Tokens committed."""
        return self.holdings[rid].length

    def admit(self, rid: int) -> None:
        """A sequence without tokens; it takes memory from its first `reserve` on."""
        assert rid not in self.holdings, f"request {rid} is admitted twice"
        self.holdings[rid] = Holding([Table(group) for group in self.room.groups])

    def reserve(self, rid: int, num_rows: int, *, later_rows: int = 0) -> bool:
        """Memory for the next `num_rows` rows, provisional ones included, in all groups. False, and nothing changed, if
        one has none.

        later_rows: that later steps will add, for which there must be room, too. What a step does not keep goes back
        when it is committed.
        """
        holding = self.holdings[rid]
        needs_slot = self.room.has_slots and holding.slot is None
        end = holding.length + num_rows
        missing = [table.missing(end + table.group.rows_ahead(later_rows)) for table in holding.tables]
        if needs_slot and not self.slots.num_free:
            return False
        if any(n > pool.num_free for n, pool in zip(missing, self.blocks, strict=True)):
            return False
        for table, pool, n in zip(holding.tables, self.blocks, missing, strict=True):
            table.blocks += pool.alloc(n) or []
        if needs_slot:
            holding.slot = self.slots.alloc()
        return True

    def advance(self, rid: int, num_rows: int) -> None:
        """The next `num_rows` rows are committed; what was reserved beyond them goes back."""
        holding = self.holdings[rid]
        holding.length += num_rows
        self._truncate(holding, holding.length)

    def release(self, rid: int) -> None:
        """Give everything of a sequence back."""
        holding = self.holdings.pop(rid)
        self._truncate(holding, 0)
        if holding.slot is not None:
            self.slots.release(holding.slot)

    def check(self) -> None:
        """Assert that nothing leaked and nothing has two owners."""
        holdings: Sequence[Holding] = list(self.holdings.values())
        for group, pool in enumerate(self.blocks):
            tables = [holding.tables[group] for holding in holdings]
            pool.check([table.owned for table in tables])
            for table, holding in zip(tables, holdings, strict=True):
                assert 0 <= holding.length <= len(table.blocks) * PAGE_SIZE, "committed tokens without a page"
                assert not any(table.blocks[: table.num_freed]), "a freed page is still in a table"
                assert table.num_freed <= table.group.first_page(holding.length), "a page was freed too early"
        self.slots.check([holding.slot for holding in holdings if holding.slot is not None])
        for holding in holdings:
            assert not (self.room.has_slots and holding.length) or holding.slot is not None, "a state without a slot"

    def _truncate(self, holding: Holding, num_tokens: int) -> None:
        for table, pool in zip(holding.tables, self.blocks, strict=True):
            table.truncate(pool, num_tokens)
