"""By priority, with aging: waiting counts as priority, so that nobody starves.

    rank(job) = priority + (now - arrived) / aging        highest first

`aging` is how many seconds of waiting weigh as much as one step of priority.
"""

import math
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, OrderPolicy


class Priority(OrderPolicy):
    """aging: seconds."""

    def __init__(self, aging: float = 30.0) -> None:
        if not 0 < aging < math.inf:
            raise UserError(f"priority: aging is {aging}", why="it is a finite number of seconds above 0")
        self._aging = aging

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        return sorted(jobs, key=lambda job: (-(job.priority + (now - job.arrived) / self._aging), job.rid))


CARD = Card(
    name="priority",
    make=Priority,
    idea="by priority, and waiting counts as priority",
    paper="github.com/vllm-project/vllm",
    can=Can(0),
    cost="O(n log n) per step",
)
