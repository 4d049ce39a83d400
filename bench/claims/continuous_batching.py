"""E-BATCH and Flover: texts of different lengths in one batch, whose places are filled again as soon as one ends.

    python bench/claims/continuous_batching.py

Writes bench/records/claim_continuous_batching.json. Simulated: the engine's own scheduler, without a model; each step
takes a fixed time, and some more for each of its rows. Requests of one prompt token and 10 to 400 output tokens come
all at once, or one by one at 0.5, 0.9 and 1.5 times what can be served. Compared: a static batch, which takes up to 16
requests that wait and runs until the longest is over; and the scheduler, with 16 places. Neither changes an output: no
text depends on its companions, which is a law of the engine (tests/engine/test_no_leaks.py).

`waste`: places of a step that computed nothing for anybody, of all places, while requests waited. The ratios of the
papers are against systems of their time, and are not compared.
"""

import json
import random
import shlex
import sys
from collections import deque
from pathlib import Path

from stretto.cache.ledger import Room
from stretto.core.pages import PageGroup
from stretto.engine.policies.order.fcfs import FCFS
from stretto.engine.scheduler import Limits, Plan, Policies
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result
from stretto.planner.simulator import Arrival, World, simulate

RECORD = Path(__file__).parents[1] / "records" / "claim_continuous_batching.json"
PLACES, COUNT = 16, 400
FIXED, PER_ROW = 0.008, 0.0005  # seconds of a step, about those of a small model on two cores
ROOM = Room(groups=(PageGroup(),), num_blocks=(20_000,), num_slots=1, has_slots=False)


def step_seconds(num_rows: int) -> float:
    return FIXED + PER_ROW * num_rows


def static(arrivals: list[Arrival]) -> tuple[float, float, list[float]]:
    """Seconds, waste, and the seconds from arrival to end of every request."""
    coming, now, idle, places, waits = deque(arrivals), 0.0, 0, 0, list[float]()
    while coming:
        now = max(now, coming[0].at)
        batch = [coming.popleft() for _ in range(PLACES) if coming and coming[0].at <= now]
        longest = max(one.output for one in batch)
        now += longest * step_seconds(len(batch))
        if coming and coming[0].at <= now:
            idle, places = idle + sum(longest - one.output for one in batch), places + longest * PLACES
        waits += [now - one.at for one in batch]
    return now, idle / max(1, places), waits


def continuous(arrivals: list[Arrival]) -> tuple[float, float, list[float]]:
    """The same of the scheduler."""
    steps = list[tuple[float, int, int]]()  # when it began, its rows, how many had been begun by then
    begun, now = set[int](), 0.0

    def seconds(plan: Plan, drafted: int) -> float:
        nonlocal now
        begun.update(share.job.rid for share in plan.shares)
        rows = len(plan.shares)
        now = max(now, max(share.job.arrived for share in plan.shares))
        steps.append((now, rows, len(begun)))
        now += step_seconds(rows)
        return step_seconds(rows)

    lives = simulate(
        arrivals, Policies(order=FCFS()), Limits(max_rows=512, max_seqs=PLACES), ROOM, World(seconds=seconds)
    )
    idle = places = 0
    for began, rows, num_begun in steps:
        if sum(one.at <= began for one in arrivals) > num_begun:  # somebody waits
            idle, places = idle + PLACES - rows, places + PLACES
    ends = [life.finished or 0.0 for life in lives]
    return max(ends), idle / max(1, places), [end - life.job.arrived for end, life in zip(ends, lives, strict=True)]


def main() -> None:
    rng = random.Random(11)
    lengths = [rng.randrange(10, 401) for _ in range(COUNT)]
    capacity = PLACES / step_seconds(PLACES) / (sum(lengths) / COUNT)  # requests per second
    rows, samples = [], dict[str, list[float]]()
    for load in (None, 0.5, 0.9, 1.5):
        at, arrivals = 0.0, list[Arrival]()
        for n in lengths:
            at += rng.expovariate(load * capacity) if load else 0.0
            arrivals.append(Arrival(at=at, prompt=1, output=n, limit=n))
        name = f"load {load}" if load else "all at once"
        for way, found in (("static", static(arrivals)), ("continuous", continuous(arrivals))):
            seconds, waste, waits = found
            values = {
                "output": ("tokens/s", sum(lengths) / seconds),
                "waste": ("%", 100 * waste),
                "arrival to end, median": ("s", sorted(waits)[COUNT // 2]),
            }
            for what, (unit, value) in values.items():
                key = f"{name}, {way}: {what}"
                samples[key] = [value]
                rows.append(result(key, unit, samples[key]))
            shown = (f"  {what} {value:8.1f} {unit}" for what, (unit, value) in values.items())
            print(f"{name:12} {way:11}" + "".join(shown))
    machine = describe_machine() | {"shown": "simulated", "places": PLACES, "requests": COUNT}
    command = shlex.join(["python", *sys.argv])
    record = as_record("Continuous batching (E-BATCH, Flover)", command, machine, rows, samples)
    RECORD.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
