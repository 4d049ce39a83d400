"""First come, first served: by admission order; who came last gives way."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.policy import Candidate, OrderPolicy


class FCFS(OrderPolicy):
    """The request that waits longest goes first, so none starves; the youngest loses least when preempted."""

    def order(self, waiting: Sequence[Candidate]) -> list[Candidate]:
        return sorted(waiting, key=lambda c: c.arrival)

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return max(running, key=lambda c: c.arrival)


CARD = Card(
    name="fcfs",
    make=FCFS,
    idea="first come, first served",
    paper="2309.06180",
    can=Can(0),
    cost="O(n log n) per step",
)
