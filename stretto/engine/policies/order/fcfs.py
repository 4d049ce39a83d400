"""First come, first served."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.policy import Job, OrderPolicy


class FCFS(OrderPolicy):
    """Who waits longest goes first, so nobody starves."""

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        return sorted(jobs, key=lambda job: job.rid)  # numbers are given in order of arrival


CARD = Card(
    name="fcfs",
    make=FCFS,
    idea="first come, first served",
    paper="2309.06180",
    can=Can(0),
    cost="O(n log n) per step",
)
