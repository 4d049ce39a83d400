"""Jobs that read much run beside jobs that write much: the first are bound by arithmetic, the second by memory.

Branches of texts that begin alike are sorted by how much they read per token that they write, and taken from both ends:
from the end that brings those that run nearer to the mean of all. Source: arXiv 2411.16102 (BlendServe). Differs from
it: tokens that are read and `limit` stand for measured times, and the tree has one level.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, OrderPolicy
from stretto.engine.policies.order.prefix import BRANCH


class Blend(OrderPolicy):
    """aging: seconds of waiting after which a job comes before those that wait less; then once more after so long."""

    def __init__(self, aging: float = 600.0) -> None:
        if not 0 < aging < math.inf:
            raise UserError(f"blend: aging is {aging}", why="it is a finite number of seconds above 0")
        self._aging = aging
        self._running = 0, 0  # tokens that they read and write

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        if jobs and jobs[0].is_running:  # asked before those that wait
            self._running = _reads(jobs), _writes(jobs)
            return sorted(jobs, key=lambda job: job.rid)
        read, written = self._running
        self._running = 0, 0
        branches: dict[tuple[int, ...], list[Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: job.rid):
            branches[tuple((job.tokens or ())[: min(BRANCH, job.prompt)])].append(job)
        ranked = sorted(branches.values(), key=lambda branch: (_reads(branch) / _writes(branch), branch[0].rid))
        reads, writes = read + sum(map(_reads, ranked)), written + sum(map(_writes, ranked))
        found: list[Job] = []
        low, high = 0, len(ranked) - 1
        while low <= high:
            reads_too_little = read * writes <= written * reads  # read / written against reads / writes
            branch = ranked[high] if reads_too_little else ranked[low]
            low, high = (low, high - 1) if reads_too_little else (low + 1, high)
            read, written = read + _reads(branch), written + _writes(branch)
            found += branch
        found.sort(key=lambda job: -((now - job.arrived) // self._aging))
        return found


def _reads(branch: Sequence[Job]) -> int:
    return sum(job.prompt for job in branch)


def _writes(branch: Sequence[Job]) -> int:
    return sum(job.limit for job in branch)


CARD = Card(
    name="blend",
    make=Blend,
    idea="jobs that read much run beside jobs that write much",
    paper="2411.16102",
    can=Can(0),
    cost="O(n log n) per step",
)
