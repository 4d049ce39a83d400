"""S3 (arXiv 2306.06000): answers whose length is predicted, and what that is worth to a scheduler.

    python bench/claims/s3.py

Writes bench/records/claim_s3.json. The paper: requests are packed by predicted lengths of answers; 6.49 times the
throughput of reserving memory for the longest answer. Here memory is paged and nothing is reserved, so that gain is
there without a prediction; what is left is the order. The smallest honest test, simulated on recorded step times,
three seeds: three tenants whose answers have lengths of about 12, 130 and 400 tokens, all with a limit of 512, at 4
requests per second, which is below what the machine serves, so that hardly anyone waits, and at 5.5, above it. First
come first served, and shortest first with three predictions: the limit, earlier answers of the tenant (`history`),
and the truth.

Predicted: history gets at least half of what the truth gains in the mean latency over first come first served; the
limit, which knows prompts alone, gets less than history; the makespan changes by less than 5%.
"""

import random
from itertools import product
from statistics import mean, median

from simulated import lognormal, measured_step, run, write

from stretto.core.policy import Job, LengthPolicy, OrderPolicy
from stretto.engine.policies.length.history import History
from stretto.engine.policies.length.limit import Limit
from stretto.engine.policies.order.fcfs import FCFS
from stretto.engine.policies.order.shortest import Shortest
from stretto.engine.scheduler import Policies
from stretto.planner.simulator import Arrival

SEEDS, COUNT, MOST, MAX_SEQS = range(3), 400, 512, 8
RATES = {"below": 4.0, "above": 5.5}  # requests per second, beside what the machine serves
KINDS = {"label": 12, "chat": 130, "report": 400}


class Truth(LengthPolicy):
    """Knows how long every answer becomes, by the number of its request."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def expect(self, job: Job) -> int:
        return self._lengths[job.rid]


def asked(seed: int, rate: float) -> list[Arrival]:
    """Poisson arrivals of all three kinds."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(COUNT):
        tenant = rng.choice(list(KINDS))
        new, length = lognormal(rng, KINDS[tenant], 0.3, MOST), lognormal(rng, 80, 0.7, 512)
        found.append(Arrival(at=at, prompt=length, output=new, limit=MOST, tenant=tenant))
        at += rng.expovariate(rate)
    return found


def main() -> None:
    """All predictions and seeds."""
    rows: dict[str, tuple[str, list[float]]] = {}
    step, about = measured_step()
    for (load, rate), seed in product(RATES.items(), SEEDS):
        coming = asked(seed, rate)
        ways: dict[str, tuple[OrderPolicy, LengthPolicy]] = {
            "first come first served": (FCFS(), Limit()),
            "shortest first, limit": (Shortest(), Limit()),
            "shortest first, history": (Shortest(), History()),
            "shortest first, truth": (Shortest(), Truth([one.output for one in coming])),
        }
        for way, (order, length) in ways.items():
            lives = run(coming, step, Policies(order=order, length=length), max_seqs=MAX_SEQS)
            ends = [life.finished or 0.0 for life in lives]
            latency = mean(end - life.job.arrived for end, life in zip(ends, lives, strict=True))
            rows.setdefault(f"{load}: mean latency, {way}", ("s", []))[1].append(latency)
            rows.setdefault(f"{load}: makespan, {way}", ("s", []))[1].append(max(ends))
    middle = {quantity: median(values) for quantity, (_, values) in rows.items()}
    predictions = {}
    for load in RATES:
        mine = {quantity.removeprefix(f"{load}: "): value for quantity, value in middle.items() if load in quantity}
        plain = mine["mean latency, first come first served"]
        gain = {name: plain - mine[f"mean latency, shortest first, {name}"] for name in ("limit", "history", "truth")}
        spans = [value for quantity, value in mine.items() if quantity.startswith("makespan")]
        half = f"{load}: history gets half of what the truth gains ({gain['history']:.3f} of {gain['truth']:.3f} s)"
        predictions[half] = gain["history"] >= gain["truth"] / 2 > 0
        predictions[f"{load}: the limit gets less than history ({gain['limit']:.3f} s)"] = (
            gain["limit"] < gain["history"]
        )
        change = max(spans) / min(spans) - 1
        predictions[f"{load}: the makespan changes by less than 5% ({change:.1%})"] = change < 0.05
    write("S3: the length of an answer is predicted", "s3", rows, predictions, seeds=list(SEEDS), step=about)


if __name__ == "__main__":
    main()
