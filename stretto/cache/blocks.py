"""Who owns which page and which slot. Integers only: the memory itself is in `pools.py`."""

from collections import Counter
from collections.abc import Iterable, Sequence


class BlockPool:
    """Pages 1 .. num_blocks - 1, each free, used or idle. Page 0 is the null page: it pads block tables and is never
    handed out.

    A page's ref count is the number of block tables that contain it. A page that the prefix tree keeps is idle, not
    free, once no table contains it. Pages that were used last are handed out first, so a lazily touched pool never
    grows beyond the largest use so far.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1, "page 0 always exists"
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, 0, -1))
        self._refs = [0] * num_blocks
        self._kept: set[int] = set()
        self._num_idle = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_idle(self) -> int:
        """Pages that only the prefix tree keeps."""
        return self._num_idle

    @property
    def idle(self) -> set[int]:
        """Those pages. O(pages that the tree keeps)."""
        return {page for page in self._kept if not self._refs[page]}

    def ref(self, page: int) -> int:
        """How many tables contain the page."""
        return self._refs[page]

    def is_kept(self, page: int) -> bool:
        """Whether the prefix tree keeps the page: nobody may write it then."""
        return page in self._kept

    def alloc(self, n: int) -> list[int] | None:
        """`n` pages with ref count 1; None, and nothing changed, if fewer are free. O(n)."""
        if n > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._refs[page] = 1
        return pages

    def incref(self, pages: Iterable[int]) -> None:
        """One more table contains these pages, used or idle."""
        for page in pages:
            assert self._refs[page] > 0 or page in self._kept, f"page {page} is not in use"
            self._num_idle -= not self._refs[page]
            self._refs[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One table fewer contains these pages; those without a table are free or idle. The last page comes first."""
        for page in reversed(pages):
            assert self._refs[page] > 0, f"page {page} is released twice"
            self._refs[page] -= 1
            if not self._refs[page]:
                self._retire(page)

    def keep(self, page: int) -> None:
        """The prefix tree keeps this used page from now on."""
        assert self._refs[page] > 0 and page not in self._kept, f"page {page} is kept twice, or by nobody"
        self._kept.add(page)

    def forget(self, page: int) -> None:
        """The prefix tree keeps this page no longer."""
        self._kept.remove(page)
        if not self._refs[page]:
            self._num_idle -= 1
            self._free.append(page)

    def check(self, tables: Iterable[Sequence[int]], kept: Sequence[int] = ()) -> None:
        """Assert: every page is the null page, free, idle or in a table, exactly one of these; ref counts count tables.

        kept: the pages of the prefix tree.
        """
        uses = Counter(page for table in tables for page in table)
        free, idle = set(self._free), self._kept - uses.keys()
        assert len(free) == len(self._free), "a page is free twice"
        assert len(set(kept)) == len(kept) and self._kept == set(kept), "a page has two places in the prefix tree"
        assert 0 not in uses and 0 not in free and 0 not in self._kept, "the null page was handed out"
        assert free.isdisjoint(uses) and free.isdisjoint(self._kept), "a free page is in use"
        assert self._num_idle == len(idle), "idle pages were counted wrongly"
        assert len(free) + len(uses) + len(idle) + 1 == self.num_blocks, "a page leaked"
        assert all(ref == uses[page] for page, ref in enumerate(self._refs)), "a ref count differs from the tables"

    def _retire(self, page: int) -> None:
        if page in self._kept:
            self._num_idle += 1
        else:
            self._free.append(page)


class SlotPool:
    """Slots 1 .. num_slots - 1, each free or of one owner; slot 0 is the zero state, which nobody writes."""

    def __init__(self, num_slots: int) -> None:
        assert num_slots >= 1, "slot 0 always exists"
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, 0, -1))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> frozenset[int]:
        """Slots that have an owner."""
        return frozenset(self._used)

    def alloc(self) -> int | None:
        """A slot, or None if all are in use. O(1)."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back. O(1)."""
        assert slot in self._used, f"slot {slot} is released twice"
        self._used.remove(slot)
        self._free.append(slot)

    def check(self, owned: Iterable[int]) -> None:
        """Assert: the slots that sequences and prefixes own are the used ones, each owned once; the others are free."""
        owners = Counter(owned)
        assert all(count == 1 for count in owners.values()), "a slot has two owners"
        assert owners.keys() == self._used, "a slot leaked"
        assert 0 not in owners and 0 not in self._free, "the zero state was handed out"
        assert sorted([*self._free, *self._used, 0]) == list(range(self.num_slots)), "a slot is lost or free twice"
