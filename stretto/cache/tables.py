"""Block tables: where the tokens of one request lie. Integers only."""

from dataclasses import dataclass, field

from stretto.cache.blocks import BlockPool
from stretto.core.state import PAGE_SIZE


def num_pages(num_tokens: int) -> int:
    """Pages that hold `num_tokens` tokens."""
    return -(-num_tokens // PAGE_SIZE)


@dataclass(slots=True)
class Table:
    """The pages of one request, in order. length: tokens committed; positions beyond it are provisional."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def reserve(self, pool: BlockPool, num_tokens: int) -> bool:
        """Own pages for positions 0 .. num_tokens - 1. False, and nothing changed, if the pool cannot give them."""
        missing = num_pages(num_tokens) - len(self.blocks)
        if missing <= 0:
            return True
        pages = pool.alloc(missing)
        if pages is None:
            return False
        self.blocks += pages
        return True

    def truncate(self, pool: BlockPool, num_tokens: int) -> None:
        """Forget what lies beyond `num_tokens` tokens and give its pages back."""
        keep = num_pages(num_tokens)
        pool.release(self.blocks[keep:])
        del self.blocks[keep:]
        self.length = min(self.length, num_tokens)

    def slot_mapping(self, first: int, n: int) -> list[int]:
        """Where positions first .. first + n - 1 lie: page * PAGE_SIZE + offset."""
        assert n == 0 or num_pages(first + n) <= len(self.blocks), "positions without a page"
        return [self.blocks[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(first, first + n)]
