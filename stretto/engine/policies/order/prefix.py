"""Texts that begin alike run one after the other, so that what they share is computed once and stays in the cache.

Jobs are sorted as the leaves of a tree over their tokens, depth first. Its branches (jobs that share their first 64
tokens) come by what they output per token that they read, the most first: long answers start early, and what
is read later runs beside them. Source: arXiv 2412.03594 (BatchLLM). Differs from it: the tree is that of the jobs that
wait, which change, and `limit` stands for the length of an answer.
"""

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, OrderPolicy, Record
from stretto.engine.policies.order._shared import branch_of

_SPARE = 64  # jobs that may be remembered although they are gone


class Prefix(OrderPolicy):
    """aging: seconds of waiting after which a job comes before those that wait less; then once more after so long."""

    def __init__(self, aging: float = 600.0) -> None:
        if not 0 < aging < math.inf:
            raise UserError(f"prefix: aging is {aging}", why="it is a finite number of seconds above 0")
        self._aging = aging
        self._sorted: list[tuple[tuple[int, ...], int]] = []  # texts with the numbers of their jobs
        self._known: set[int] = set()
        self._seen: set[int] = set()

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        by_rid = {job.rid: job for job in jobs}
        for rid in by_rid.keys() - self._known:
            insort(self._sorted, (tuple(by_rid[rid].tokens or ())[: by_rid[rid].prompt], rid))
        self._known |= by_rid.keys()
        self._seen |= by_rid.keys()
        branches: dict[tuple[int, ...], list[Job]] = defaultdict(list)
        for tokens, rid in self._sorted:
            if rid in by_rid:
                branches[branch_of(tokens)].append(by_rid[rid])
        ranked = sorted(branches.values(), key=_answers_per_token, reverse=True)
        found = [job for branch in ranked for job in branch]
        found.sort(key=lambda job: -((now - job.arrived) // self._aging))
        return found

    def learn(self, record: Record) -> None:
        """Jobs that were not asked about in this step are gone."""
        if len(self._known) > 2 * len(self._seen) + _SPARE:
            self._sorted = [one for one in self._sorted if one[1] in self._seen]
            self._known = set(self._seen)
        self._seen = set()


def _answers_per_token(branch: Sequence[Job]) -> tuple[float, int]:
    """Output per token of prompts; of equal ones the branch that came first."""
    return sum(job.limit for job in branch) / sum(job.prompt for job in branch), -min(job.rid for job in branch)


CARD = Card(
    name="prefix",
    make=Prefix,
    idea="texts that begin alike run one after the other",
    paper="2412.03594",
    can=Can(0),
    cost="O(n) per step, O(n log n) for those that are new",
)
