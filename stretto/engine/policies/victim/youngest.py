"""Preempt who came last: it loses least, and everybody before it makes progress."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.policy import Job, VictimPolicy


class Youngest(VictimPolicy):
    """Of those with the lowest priority the one that came last."""

    def victim(self, running: Sequence[Job], now: float) -> Job:
        return min(running, key=lambda job: (job.priority, -job.rid))


CARD = Card(
    name="youngest",
    make=Youngest,
    idea="preempt who came last among those of lowest priority",
    paper="2309.06180",
    can=Can(0),
    cost="O(n) per preemption",
)
