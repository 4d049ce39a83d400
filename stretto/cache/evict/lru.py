"""Evict what was used least recently; of one text, the end first."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.policy import AnyPrefix, EvictPolicy


class LRU(EvictPolicy):
    """See the module docstring."""

    def order(self, prefixes: Sequence[AnyPrefix], now: int) -> list[AnyPrefix]:
        return sorted(prefixes, key=lambda one: (one.used, -one.end))


CARD = Card(
    name="lru",
    make=LRU,
    idea="evict what was used least recently",
    paper="2312.07104",
    can=Can(0),
    cost="O(n log n) for n stretches without a continuation",
)
