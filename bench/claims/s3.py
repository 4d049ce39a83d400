"""S3 (arXiv 2306.06000): answers whose length is predicted, and what that is worth to a scheduler.

    python bench/claims/s3.py

Writes bench/records/claim_s3.json. The paper: requests are packed by predicted lengths of answers; 6.49 times the
throughput of reserving memory for the longest answer. Here memory is paged and nothing is reserved, so that gain is
there without a prediction; what is left is the order. The smallest honest test, simulated on recorded step times,
three seeds: three tenants whose answers have lengths of about 12, 130 and 400 tokens, all with a limit of 512,
somewhat faster than the machine serves them. First come first served, and shortest first with three predictions: the
limit, earlier answers of the tenant (`history`), and the truth.

Predicted: history gets at least half of what the truth gains in the mean latency over first come first served; the
limit, which knows prompts alone, gets less than history; the makespan changes by less than 5%.
"""

import random
from statistics import mean, median

from simulated import lognormal, measured_step, run, write

from stretto.core.policy import Job, LengthPolicy, OrderPolicy
from stretto.engine.policies.length.history import History
from stretto.engine.policies.length.limit import Limit
from stretto.engine.policies.order.fcfs import FCFS
from stretto.engine.policies.order.shortest import Shortest
from stretto.engine.scheduler import Policies
from stretto.planner.simulator import Arrival

SEEDS, COUNT, MOST, MAX_SEQS, RATE = range(3), 400, 512, 8, 5.5
KINDS = {"label": 12, "chat": 130, "report": 400}


class Truth(LengthPolicy):
    """Knows how long every answer becomes, by the number of its request."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def expect(self, job: Job) -> int:
        return self._lengths[job.rid]


def asked(seed: int) -> list[Arrival]:
    """Poisson arrivals of all three kinds."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(COUNT):
        tenant = rng.choice(list(KINDS))
        new, length = lognormal(rng, KINDS[tenant], 0.3, MOST), lognormal(rng, 80, 0.7, 512)
        found.append(Arrival(at=at, prompt=length, output=new, limit=MOST, tenant=tenant))
        at += rng.expovariate(RATE)
    return found


def main() -> None:
    """All predictions and seeds."""
    rows: dict[str, tuple[str, list[float]]] = {}
    step, about = measured_step()
    for seed in SEEDS:
        coming = asked(seed)
        truth = Truth([one.output for one in coming])
        ways: dict[str, tuple[OrderPolicy, LengthPolicy]] = {
            "first come first served": (FCFS(), Limit()),
            "shortest first, limit": (Shortest(), Limit()),
            "shortest first, history": (Shortest(), History()),
            "shortest first, truth": (Shortest(), truth),
        }
        for way, (order, length) in ways.items():
            lives = run(coming, step, Policies(order=order, length=length), max_seqs=MAX_SEQS)
            ends = [life.finished or 0.0 for life in lives]
            latency = mean(end - life.job.arrived for end, life in zip(ends, lives, strict=True))
            rows.setdefault(f"mean latency, {way}", ("s", []))[1].append(latency)
            rows.setdefault(f"makespan, {way}", ("s", []))[1].append(max(ends))
    middle = {quantity: median(values) for quantity, (_, values) in rows.items()}
    plain = middle["mean latency, first come first served"]
    gain = {name: plain - middle[f"mean latency, shortest first, {name}"] for name in ("limit", "history", "truth")}
    spans = [value for quantity, value in middle.items() if quantity.startswith("makespan")]
    predictions = {
        f"history gets half of what the truth gains ({gain['history'] / gain['truth']:.0%})":
            gain["history"] >= gain["truth"] / 2 > 0,
        f"the limit gets less than history ({gain['limit'] / gain['truth']:.0%})": gain["limit"] < gain["history"],
        f"the makespan changes by less than 5% ({max(spans) / min(spans) - 1:.1%})": max(spans) < 1.05 * min(spans),
    }  # fmt: skip
    write("S3: the length of an answer is predicted", "s3", rows, predictions, seeds=list(SEEDS), step=about)


if __name__ == "__main__":
    main()
