"""Least work: the replica that has the fewest tokens left to read and to write."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.serve.router.policy import Ask, Load, RoutePolicy


class Least(RoutePolicy):
    """Of equals the one that was sent nothing for longest."""

    def choose(self, ask: Ask, loads: Sequence[Load]) -> int:
        return min(loads, key=lambda load: (load.work, load.turn)).number


CARD = Card(
    name="least",
    make=Least,
    idea="the replica with the fewest tokens left to compute",
    paper="join the shortest queue",
    can=Can(0),
    cost="O(replicas) per request",
)
