"""`Pool`: the hidden states of a prompt become one vector of unit length, while the prompt is read."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stretto.core.errors import UserError
from stretto.core.pooling import Kind

if TYPE_CHECKING:
    from numpy import ndarray


class Pool:
    """Of one prompt of `length` tokens. Hidden states are those behind the last norm; sums are taken in fp64, row by
    row, so that they do not depend on the pieces in which a prompt is read."""

    def __init__(self, kind: Kind, length: int) -> None:
        self.kind, self._length = kind, length
        self._sum: ndarray | None = None

    @property
    def is_of_all(self) -> bool:
        """Whether it needs rows that a cached beginning of the prompt does not give."""
        return self.kind != "last"

    def rows(self, held: int, num_rows: int) -> range:
        """Which rows of a piece it needs. held: tokens before the piece."""
        if self.kind == "mean":
            return range(num_rows)
        row = (0 if self.kind == "cls" else self._length - 1) - held
        return range(row, row + 1) if 0 <= row < num_rows else range(0)

    def read(self, held: int, hidden: Iterable[Sequence[float]]) -> None:
        """The hidden states of `rows`, in order. A prompt that was preempted is read again from its beginning."""
        import numpy as np

        found = self._sum if self.kind == "mean" and held else None
        for row in hidden:
            x = np.array(row, dtype=np.float64)
            found = x if found is None else found + x
        self._sum = found

    def vector(self) -> tuple[float, ...]:
        """Once the whole prompt was read. The sum has the direction of the mean. Raises UserError for what is no number
        and for a vector without a direction."""
        assert self._sum is not None, "no row was read"
        found: list[float] = self._sum.tolist()
        length = math.sqrt(math.fsum(x * x for x in found)) if all(map(math.isfinite, found)) else math.nan
        if not 0 < length < math.inf:
            raise UserError("this text has no embedding", why="its hidden states are not finite, or all are zero")
        return tuple(x / length for x in found)
