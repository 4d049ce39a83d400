"""Fair between tenants: who has been served least comes first (a virtual token counter).

    counter(tenant) += prompt tokens read + output * tokens emitted
    rank(job) = (priority + whole multiples of `aging` seconds waited, counter of its tenant, arrival)

A tenant that comes after a pause starts at the least counter of those that are active: idling earns no credit. Two
tenants who always have something to do never differ by more than one step serves. Source: arXiv 2401.00588.
"""

import math
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, OrderPolicy, Record

_MOST = 10_000  # tenants that are remembered


class Fair(OrderPolicy):
    """aging: seconds of waiting that weigh as much as one step of priority; output: what an emitted token weighs beside
    one of a prompt."""

    def __init__(self, aging: float = 30.0, output: float = 2.0) -> None:
        for name, value in (("aging", aging), ("output", output)):
            if not 0 < value < math.inf:
                raise UserError(f"fair: {name} is {value}", why="it is a finite number above 0")
        self._aging, self._output = aging, output
        self._counters: dict[str, float] = {}
        self._active, self._seen = set[str](), set[str]()

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        for tenant in {job.tenant for job in jobs} - self._seen:
            self._enter(tenant)

        def rank(job: Job) -> tuple[float, float, int]:
            waited = (now - job.arrived) // self._aging
            return -(job.priority + waited), self._counters[job.tenant], job.rid

        return sorted(jobs, key=rank)

    def learn(self, record: Record) -> None:
        for tenant, read, emitted in record.served:
            self._counters[tenant] = self._counters.get(tenant, 0.0) + read + self._output * emitted
        self._active, self._seen = self._seen, set()
        if len(self._counters) > _MOST:  # those that are idle would start at the least counter again
            self._counters = {tenant: self._counters[tenant] for tenant in self._active}

    def _enter(self, tenant: str) -> None:
        """It has something to do in this step."""
        others = [self._counters[other] for other in self._active | self._seen if other != tenant]
        if tenant not in self._active:
            self._counters[tenant] = max(self._counters.get(tenant, 0.0), min(others, default=0.0))
        self._seen.add(tenant)


CARD = Card(
    name="fair",
    make=Fair,
    idea="who has been served least comes first, tenant by tenant",
    paper="2401.00588",
    can=Can(0),
    cost="O(n log n) per step",
)
