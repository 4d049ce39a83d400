"""Round robin: every replica in turn, whatever it has to do."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.serve.router.policy import Ask, Load, RoutePolicy


class Round(RoutePolicy):
    """The one that was sent nothing for longest."""

    def choose(self, ask: Ask, loads: Sequence[Load]) -> int:
        return min(loads, key=lambda load: load.turn).number


CARD = Card(
    name="round",
    make=Round,
    idea="every replica in turn",
    paper="round robin",
    can=Can(0),
    cost="O(replicas) per request",
)
