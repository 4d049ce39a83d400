"""Block tables: where the keys of one request lie. Integers only."""

from dataclasses import dataclass, field

from stretto.cache.blocks import BlockPool
from stretto.core.pages import PAGE_SIZE, PageGroup, num_pages


@dataclass(slots=True)
class Table:
    """The pages of one request in one group, in order; entry i of its list lies on `blocks[i // PAGE_SIZE]`.

    num_freed: leading pages that were given back. The null page stands for them, so that no entry moves.
    """

    group: PageGroup
    blocks: list[int] = field(default_factory=list)
    num_freed: int = 0

    @property
    def owned(self) -> list[int]:
        """The pages that it has."""
        return self.blocks[self.num_freed :]

    def missing(self, num_keys: int) -> int:
        """Pages that a list of `num_keys` lacks."""
        return max(0, num_pages(num_keys) - len(self.blocks))

    def truncate(self, pool: BlockPool, num_keys: int) -> None:
        """Give back the pages of what lies beyond `num_keys` entries, and those that no row behind them may see."""
        keep, first = num_pages(num_keys), max(self.num_freed, self.group.first_page(num_keys))
        pool.release(self.blocks[max(keep, self.num_freed) :])
        del self.blocks[keep:]
        seen = self.blocks[self.num_freed : first]
        pool.release(seen)
        self.blocks[self.num_freed : first] = [0] * len(seen)
        self.num_freed = min(first, keep)

    def slot_mapping(self, first: int, n: int) -> list[int]:
        """Where entries first .. first + n - 1 lie: page * PAGE_SIZE + offset."""
        assert n == 0 or num_pages(first + n) <= len(self.blocks), "positions without a page"
        return [self.blocks[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(first, first + n)]
