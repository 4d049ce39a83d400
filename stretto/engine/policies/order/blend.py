"""Jobs that read much run beside jobs that write much: the first are bound by arithmetic, the second by memory.

Branches of texts that begin alike are sorted by how much they read per token that they write, and taken from both ends.
While a running job still reads its prompt, those that write much are admitted; as soon as none does, one that reads
much: so every step has a prompt to multiply and as many texts to decode as there are places. Source: arXiv 2411.16102
(BlendServe, the dual scanner). Differs from it: tokens that are read and `limit` stand for measured times, the tree has
one level, and which end is taken is said by what runs, not by a mean over the batch.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, OrderPolicy
from stretto.engine.policies.order._shared import beginning


class Blend(OrderPolicy):
    """aging: seconds of waiting after which a job comes before those that wait less; then once more after so long."""

    def __init__(self, aging: float = 600.0) -> None:
        if not 0 < aging < math.inf:
            raise UserError(f"blend: aging is {aging}", why="it is a finite number of seconds above 0")
        self._aging = aging
        self._reads = False  # whether a running job reads its prompt

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        if jobs and jobs[0].is_running:  # asked before those that wait
            self._reads = any(job.need > 1 for job in jobs)
            return sorted(jobs, key=lambda job: job.rid)
        branches: dict[tuple[int, ...], list[Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: job.rid):
            branches[beginning(job)].append(job)
        found = [job for branch in sorted(branches.values(), key=_reading) for job in branch]
        if found and not self._reads:
            found.insert(0, found.pop())
        self._reads = False
        found.sort(key=lambda job: -((now - job.arrived) // self._aging))
        return found


def _reading(branch: Sequence[Job]) -> tuple[float, int]:
    """Tokens read per token written; of equal branches the one that came first."""
    return sum(job.prompt for job in branch) / sum(job.limit for job in branch), branch[0].rid


CARD = Card(
    name="blend",
    make=Blend,
    idea="jobs that read much run beside jobs that write much",
    paper="2411.16102",
    can=Can(0),
    cost="O(n log n) per step",
)
