"""Pages: their size, the groups that they fall into, and where the keys of one call lie.

What grows with a sequence is stored on pages of `PAGE_SIZE` tokens. Layers that keep the same tokens share a *page
group*: it has its own pool of pages, and for every sequence its own block table. A group says which tokens stay:

    all           every token of the sequence
    window:4096   those that a row may still see if it sees itself and the 4,095 tokens before it

A sequence has a list of keys in every group. Entry i lies on page `i // PAGE_SIZE` of the block table, and stays there:
pages that are freed at the front leave the null page behind, which is never read.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from stretto.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PAGE_SIZE = 16  # tokens per page


def num_pages(num_tokens: int) -> int:
    """Pages that hold `num_tokens` tokens."""
    return -(-num_tokens // PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Which tokens of a sequence stay on pages. window: tokens that a row sees, itself included; None = all."""

    window: int | None = None

    @staticmethod
    @cache
    def parse(text: str) -> "PageGroup":
        """`all` or `window:N`. Raises UserError, with a near match, for anything else."""
        kind, colon, number = text.partition(":")
        if text == "all":
            return PageGroup()
        if kind != "window":
            near = difflib.get_close_matches(kind, ("all", "window"), n=1)
            hint = f"did you mean {near[0]}{':N' if near[0] == 'window' else ''}?" if near else "all or window:N"
            raise UserError(f"unknown page group {text!r}", try_=hint)
        if not (number.isascii() and number.isdigit() and int(number)):
            why = "a window is a number of tokens, at least 1" if colon else "it does not say how many tokens"
            raise UserError(f"page group {text!r} is no window", why=why, try_="for example window:4096")
        return PageGroup(int(number))

    def first_page(self, num_tokens: int) -> int:
        """The first page that a row at position `num_tokens` or behind it may see."""
        return 0 if self.window is None else max(0, num_tokens + 1 - self.window) // PAGE_SIZE

    def most_pages(self, num_tokens: int, max_rows: int) -> int:
        """Pages that a sequence of `num_tokens` owns at most while a step adds up to `max_rows` of them."""
        pages = num_pages(num_tokens)
        return pages if self.window is None else min(pages, num_pages(self.window + max_rows) + 1)

    def rows_ahead(self, num_rows: int) -> int:
        """Of `num_rows` rows that later steps will add, those that have pages beside what is there now."""
        return num_rows if self.window is None else min(num_rows, self.window)


@dataclass(frozen=True, slots=True)
class Locations:
    """Where the lists of keys of one page group lie during one call.

    block_table: [B, blocks] int64, page numbers; page 0 is the null page (padding, and what was freed).
    slot_mapping: [T] int64, where each row of this call goes: page * PAGE_SIZE + offset. group: its number.
    key_positions: per sequence, [held] int64, the positions of the keys that it held before this call, in the order of
    its list. None: it holds its whole context, and the index of a key is its position.
    """

    block_table: "Tensor"
    slot_mapping: "Tensor"
    group: int = 0
    key_positions: "Sequence[Tensor] | None" = None
