"""A virtual token counter (arXiv 2401.00588): tenants get equal shares of the work, whatever they ask for.

    python bench/claims/vtc.py

Writes bench/records/claim_vtc.json. The paper: the difference in service of two tenants who always have something to do
is bounded, by twice the work of a largest prompt or a full batch, and first come first served is not bounded. The
smallest honest test, simulated on recorded step times, five seeds: tenant A asks ten times as often as tenant B.

1. Both always have something waiting: the largest difference of work (prompt tokens + 2 x tokens written) over time.
2. B alone would be served at once: the 90th percentile of its time to the first token, alone and beside A.

Predicted: with `fair` the difference stays within the bound, with `fcfs` it is more than 5 times as large; B's 90th
percentile is at most a fifth of that with `fcfs`. The plan was 1.5 times B's time alone; since nobody is preempted for
fairness, B still waits for a place, so it is recorded and not predicted.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from simulated import at_share, lognormal, measured_step, run, write

from stretto.core.policy import Job, OrderPolicy, Record
from stretto.engine.policies.order.fair import Fair
from stretto.engine.policies.order.fcfs import FCFS
from stretto.engine.scheduler import Policies
from stretto.planner.simulator import Arrival, Life

SEEDS, OUTPUT = range(5), 2.0  # what a written token weighs
MAX_SEQS, MAX_ROWS, LONGEST, MOST = 16, 128, 1024, 512
BOUND = 2 * max(LONGEST, OUTPUT * MAX_SEQS * MOST)
ORDERS = {"fair": lambda: Fair(aging=1e6, output=OUTPUT), "fcfs": FCFS}


class Watched(OrderPolicy):
    """An order that another one makes; the largest difference of work while both tenants have something waiting."""

    def __init__(self, order: OrderPolicy) -> None:
        self._order, self._work = order, defaultdict[str, float](float)
        self._waiting, self._base, self.largest = set[str](), 0.0, 0.0

    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        if jobs and not jobs[0].is_running:
            self._waiting = {job.tenant for job in jobs}
        return self._order.order(jobs, now)

    def learn(self, record: Record) -> None:
        for tenant, read, written in record.served:
            self._work[tenant] += read + OUTPUT * written
        difference = self._work["A"] - self._work["B"]
        if self._waiting == {"A", "B"}:
            self.largest = max(self.largest, abs(difference - self._base))
        else:  # an interval begins when both have something waiting
            self._base = difference
        self._order.learn(record)


def asked(rng: random.Random, tenant: str, count: int, rate: float) -> list[Arrival]:
    """Poisson arrivals of chats."""
    at, found = 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        length, new = lognormal(rng, 161, 1.0, LONGEST), lognormal(rng, 130, 0.9, MOST)
        found.append(Arrival(at=at, prompt=length, output=new, limit=MOST, tenant=tenant))
    return found


def serve(arrivals: list[Arrival], order: OrderPolicy) -> list[Life]:
    return run(arrivals, measured_step()[0], Policies(order=order), max_rows=MAX_ROWS, max_seqs=MAX_SEQS)


def first_token(lives: list[Life], tenant: str) -> float:
    """90th percentile, in seconds."""
    return at_share([life.token_times[0] - life.job.arrived for life in lives if life.job.tenant == tenant], 0.9)


def main() -> None:
    """Both tests, all seeds."""
    rows: dict[str, tuple[str, list[float]]] = {}

    def add(quantity: str, unit: str, value: float) -> None:
        rows.setdefault(quantity, (unit, []))[1].append(value)

    for seed in SEEDS:
        # what both ask for is several times what the machine does, for as long as B's requests last
        busy = asked(random.Random(seed), "A", 600, 30.0) + asked(random.Random(seed + 50), "B", 60, 3.0)
        few = asked(random.Random(seed + 100), "B", 30, 0.2)
        beside = few + asked(random.Random(seed + 150), "A", 600, 4.0)
        add("B's first token, 90% within, alone", "s", first_token(serve(few, FCFS()), "B"))
        for name, make in ORDERS.items():
            watched = Watched(make())
            serve(busy, watched)
            add(f"largest difference of work, {name}", "tokens", watched.largest)
            add(f"B's first token, 90% within, {name}", "s", first_token(serve(beside, make()), "B"))
    middle = {quantity: median(values) for quantity, (_, values) in rows.items()}
    fair, fcfs = (rows[f"largest difference of work, {name}"][1] for name in ORDERS)
    waits = [middle[f"B's first token, 90% within, {name}"] for name in ORDERS]
    alone = middle["B's first token, 90% within, alone"]
    predictions = {
        f"fair: within the bound of {BOUND:,.0f} ({max(fair):,.0f})": max(fair) <= BOUND,
        f"fcfs: more than 5 times what fair has ({median(fcfs) / median(fair):.1f})": median(fcfs) > 5 * median(fair),
        f"B waits at most a fifth of fcfs ({waits[0] / waits[1]:.3f})": waits[0] <= 0.2 * waits[1],
    }
    about = {"seeds": list(SEEDS), "step": measured_step()[1], "beside_alone": waits[0] / alone, "bound": BOUND}
    write("A virtual token counter: fair between tenants", "vtc", rows, predictions, **about)


if __name__ == "__main__":
    main()
