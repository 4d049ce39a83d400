"""Marconi: evict what saves least computing per byte and was not used lately.

    score = recency + alpha * efficiency        the lowest goes first

recency is 1 / (requests since it was used), efficiency the operations that a stretch saves per byte that it takes; both
are scaled to 0 .. 1 over what may go. In a model with states a short stretch and a long one take one state each, but
the long one saves more.

Source: arXiv 2411.19379, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import AnyPrefix, EvictPolicy, Worth


@dataclass(slots=True)
class Marconi(EvictPolicy):
    """alpha: weight of the efficiency, 0 or more; 0 is least recently used."""

    alpha: float = 1.0
    _worth: Worth = field(default_factory=Worth, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise UserError(f"alpha is {self.alpha}", why="it is a weight, 0 or more")

    def know(self, worth: Worth) -> None:
        self._worth = worth

    def order(self, prefixes: Sequence[AnyPrefix], now: int) -> list[AnyPrefix]:
        worth = self._worth
        recent = _scaled([1 / (1 + now - one.used) for one in prefixes])
        efficient = _scaled(
            [
                worth.saved(one.start, one.end) / worth.taken(one.start, one.end, has_state=one.has_state)
                for one in prefixes
            ]
        )
        scores = [r + self.alpha * e for r, e in zip(recent, efficient, strict=True)]
        order = sorted(range(len(prefixes)), key=lambda i: (scores[i], prefixes[i].used, -prefixes[i].end))
        return [prefixes[i] for i in order]


def _scaled(values: Sequence[float]) -> list[float]:
    """From 0 for the smallest to 1 for the largest; 1 if all are equal."""
    if not values:
        return []
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


CARD = Card(
    name="marconi",
    make=Marconi,
    idea="evict what saves least computing per byte and was not used lately",
    paper="2411.19379",
    can=Can(0),
    cost="O(n log n) for n stretches that may go",
)
