"""`FileRows`: where the rows of a stored matrix lie in a file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class FileRows:
    """path: of the file; start: the byte where its first row begins; row_bytes: of each; num_rows: how many lie there.
    order: our row i is row order[i] of them; None = they are ours in order."""

    path: str
    start: int
    row_bytes: int
    num_rows: int
    order: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Rows that are ours."""
        return self.num_rows if self.order is None else len(self.order)

    def rows(self, first: int, last: int) -> "FileRows":
        """Our rows [first, last)."""
        if self.order is not None:
            return replace(self, order=self.order[first:last])
        kept = range(self.num_rows)[first:last]
        return replace(self, start=self.start + kept.start * self.row_bytes, num_rows=len(kept))

    def permuted(self, index: Sequence[int]) -> "FileRows":
        """Our rows in another order."""
        ours = range(self.num_rows) if self.order is None else self.order
        return replace(self, order=tuple(ours[i] for i in index))
