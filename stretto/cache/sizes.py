"""How many pages and slots fit into the memory of a cache.

What a sequence takes has two parts. One grows with its tokens: pages of the groups that keep them all. The other does
not: slots, and the pages of a window group, which a sequence owns up to a number that its length does not change. A
window that is no shorter than the context counts as the first part.
"""

from bisect import bisect_right
from dataclasses import dataclass

from stretto.cache.layout import PoolLayout
from stretto.core.errors import FitError
from stretto.core.memory import show_size
from stretto.core.pages import PAGE_SIZE, num_pages

ENDLESS = 1 << 62  # tokens


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """num_blocks: pages per page group, in the order of `PoolLayout.groups`, page 0 included. num_slots: slot 0
    included."""

    num_blocks: tuple[int, ...]
    num_slots: int


def size_pools(
    layout: PoolLayout,
    *,
    context: int,
    max_seqs: int,
    max_rows: int,
    memory_bytes: int,
    prefix_bytes: int = 0,
) -> PoolSizes:
    """What fits into `memory_bytes`, at most `max_seqs` sequences of `context` tokens.

    prefix_bytes: for prefixes of earlier texts, half of it for their states, where there are any: at most a quarter of
    what the first sequence leaves. Their pages are those that nobody uses. `context` counts every row that a sequence
    may hold, the provisional ones too; max_rows: most rows of a step. When memory is short, what grows and what does
    not share what the first sequence leaves half and half.
    Raises FitError if not even one sequence fits.
    """
    assert context >= 1 and max_seqs >= 1
    page_bytes, slot_bytes = layout.page_bytes, layout.slot_bytes
    most, pages = [group.most_pages(context, max_rows) for group in page_bytes], num_pages(context)
    spare = memory_bytes - sequence_bytes(layout, context, max_rows)
    if spare < 0:
        fits = longest_context(layout, max_rows, memory_bytes)
        raise _does_not_fit(layout, context, memory_bytes, memory_bytes - spare, fits)
    checkpoints = min(prefix_bytes // 2, spare // 4) // slot_bytes if slot_bytes else 0
    spare -= checkpoints * slot_bytes
    sizes = list(zip(most, page_bytes.values(), strict=True))
    per_page = sum(size for n, size in sizes if n == pages)
    per_seq = slot_bytes + sum(n * size for n, size in sizes if n != pages)

    def more(budget: int, unit: int, limit: int) -> int:
        return min(limit, budget // unit) if unit else 0

    seqs = more(spare // 2 if per_page else spare, per_seq, max_seqs - 1)
    extra = more(spare - seqs * per_seq, per_page, (max_seqs - 1) * pages)
    seqs = more(spare - extra * per_page, per_seq, max_seqs - 1)
    return PoolSizes(
        num_blocks=tuple(1 + n + extra if n == pages else 1 + n * (1 + seqs) for n in most),
        num_slots=2 + seqs + checkpoints if slot_bytes else 1,
    )


def sequence_bytes(layout: PoolLayout, context: int, max_rows: int) -> int:
    """What a cache for one sequence of `context` tokens takes, null pages and zero state included."""
    page_bytes, slot_bytes = layout.page_bytes, layout.slot_bytes
    pages = sum((group.most_pages(context, max_rows) + 1) * size for group, size in page_bytes.items())
    return pages + 2 * slot_bytes


def longest_context(layout: PoolLayout, max_rows: int, memory_bytes: int) -> int:
    """The longest sequence that `memory_bytes` hold: 0 if none, 2^62 if nothing grows with the sequence."""

    def need(pages: int) -> int:
        return sequence_bytes(layout, pages * PAGE_SIZE, max_rows)

    if need(ENDLESS // PAGE_SIZE) <= memory_bytes:
        return ENDLESS
    return max(0, bisect_right(range(memory_bytes + 1), memory_bytes, key=need) - 1) * PAGE_SIZE


def _does_not_fit(
    layout: PoolLayout,
    context: int,
    memory_bytes: int,
    need: int,
    fits: int,
) -> FitError:
    page_bytes, slot_bytes = layout.page_bytes, layout.slot_bytes
    windows = sorted({group.window for group in page_bytes if group.window is not None})
    per_token = sum(page_bytes.values()) // PAGE_SIZE
    limited = f", some of them for a window of {', '.join(f'{w:,}' for w in windows)} tokens only," if windows else ""
    shorter = f"a context of at most {fits:,} tokens (--ctx {fits}), or " if fits else ""
    return FitError(
        f"a context of {context:,} tokens needs {show_size(need)} of cache; {show_size(memory_bytes)} is there for it",
        why=f"a sequence takes {per_token:,} bytes per token{limited} and {slot_bytes:,} bytes of fixed-size state"
        f" (counted twice: one is the zero state); pages hold {PAGE_SIZE} tokens and one is the null page",
        try_=f"{shorter}{show_size(need - memory_bytes)} more cache memory (--mem SIZE)",
    )
