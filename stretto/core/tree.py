"""`Tree`: what every row of a sequence continues. Drafts, judges, packed rows and the cache number rows this way.

Row 0 of a draft is the pending token, the last one that is decided; rows 1, 2, ... are drafted tokens, each after the
row it continues. A chain is a tree whose row r continues row r - 1. In a packed call the rows of a sequence are
numbered the same way: those of a draft if the pending token is its only definite row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

MAX_TREE_ROWS = 64  # the pending row + 63 drafted ones: ancestors are the bits of an int64


@dataclass(frozen=True)
class Tree:
    """parents: per row the row that it continues, which comes before it; -1 = what came before row 0."""

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        assert all(-1 <= p < row for row, p in enumerate(self.parents)), "parents come before children"

    @staticmethod
    @lru_cache(maxsize=512)
    def chain(num_rows: int) -> "Tree":
        """Rows that continue one another."""
        return Tree(tuple(range(-1, num_rows - 1)))

    @staticmethod
    def drafted(parents: Sequence[int]) -> "Tree":
        """The pending row and a row for each of `parents`: what rows 1, 2, ... continue."""
        return Tree((-1, *parents))

    def __len__(self) -> int:
        return len(self.parents)

    @cached_property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self) - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Rows between every row and what came before row 0: 0 for row 0."""
        found: list[int] = []
        for parent in self.parents:
            found.append(found[parent] + 1 if parent >= 0 else 0)
        return tuple(found)

    @cached_property
    def ancestors(self) -> tuple[int, ...]:
        """Per row, bit j is set iff row j is the row itself or one that it continues, however far back."""
        found: list[int] = []
        for row, parent in enumerate(self.parents):
            found.append((found[parent] if parent >= 0 else 0) | 1 << row)
        return tuple(found)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Per row, the rows that continue it, in order."""
        found: list[list[int]] = [[] for _ in self.parents]
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                found[parent].append(row)
        return tuple(map(tuple, found))

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Per row, the rows that lead to it, itself last."""
        found: list[tuple[int, ...]] = []
        for row, parent in enumerate(self.parents):
            found.append((*found[parent], row) if parent >= 0 else (row,))
        return tuple(found)

    def first_chain(self) -> tuple[int, ...]:
        """The rows that follow row 0 by first children: what is left of a tree where only chains can be verified."""
        found: list[int] = []
        row = 0
        while self.children[row]:
            row = self.children[row][0]
            found.append(row)
        return tuple(found)

    def truncate(self, num_rows: int) -> "Tree":
        """Its first rows: parents come first, so they are a tree again."""
        return self if num_rows >= len(self) else Tree(self.parents[:num_rows])

    def grafted(self, parents: Sequence[int]) -> "Tree":
        """With further rows at the end, which continue the rows `parents`."""
        return Tree((*self.parents, *parents))
