"""Shortest job first, with aging: the least mean waiting time, if lengths are known.

    rank(job) = rows that are still to be computed - speed * (now - arrived)        smallest first

Rows to be computed are what is left of the prompt and of the output that is expected (`Job.likely`, by a length
policy). `speed` is how many rows of advantage a second of waiting makes good, so that long jobs do not starve.
Shortest first on predicted lengths: arXiv 2306.06000.
"""

import math
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, OrderPolicy


class Shortest(OrderPolicy):
    """speed: rows per second of waiting."""

    def __init__(self, speed: float = 64.0) -> None:
        if not 0 < speed < math.inf:
            raise UserError(f"shortest: speed is {speed}", why="it is a finite number of rows per second above 0")
        self._speed = speed

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        return sorted(jobs, key=lambda job: (job.need + job.likely - self._speed * (now - job.arrived), job.rid))


CARD = Card(
    name="shortest",
    make=Shortest,
    idea="who has least left to compute goes first, unless others wait long",
    paper="2306.06000",
    can=Can(0),
    cost="O(n log n) per step",
)
