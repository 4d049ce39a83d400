"""What the simulated claims share: a machine made of recorded step times, room for requests, and a record.

The engine's own scheduler and policies run over integers with a clock (`stretto/planner/simulator.py`).
`measured_step` takes the clock from bench/records/cpu_peers-avx512_vnni.json, SmolLM2 on two cores: seconds = a + b
rows, fitted to four measured steps. All is seeded: the same command writes the same numbers.
"""

import json
import math
import random
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from stretto.cache.ledger import Room
from stretto.cache.prefix_cache import Reuse
from stretto.core.pages import PageGroup
from stretto.engine.scheduler import Limits, Plan, Policies
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result
from stretto.planner.simulator import Arrival, Life, World, simulate

RECORDS = Path(__file__).parents[1] / "records"
_SOURCE, _CHUNK = "cpu_peers-avx512_vnni.json", 128  # rows of a step of a prompt there
Step = Callable[[Plan, int], float]


def measured_step() -> tuple[Step, dict[str, Any]]:
    """The clock, and what a record says of it: a, b in seconds, and how far each measured step is from the line."""
    found = {row["quantity"]: row["value"] for row in json.loads((RECORDS / _SOURCE).read_text())["results"]}
    # (steps, rows, seconds of all of them)
    points = [(1, n, n / found[f"total x{n}: stretto"]) for n in (8, 16, 32)]
    points.append((1024 / _CHUNK, 1024, found["first token after 1024: stretto"] / 1e3))
    lines = numpy.array([[steps / seconds, rows / seconds] for steps, rows, seconds in points])
    (a, b), *_ = numpy.linalg.lstsq(lines, numpy.ones(len(points)), rcond=None)
    error = max(abs((a * steps + b * rows) / seconds - 1) for steps, rows, seconds in points)
    assert min(a, b) > 0 and error < 0.2, "a line does not describe these steps"

    def seconds(plan: Plan, drafted: int) -> float:
        return float(plan.num_steps * a + b * (num_rows(plan) + drafted))

    return seconds, {"a": float(a), "b": float(b), "largest_error": float(error), "from": _SOURCE}


def num_rows(plan: Plan) -> int:
    """Tokens of a step."""
    return sum(share.num_rows for share in plan.shares)


def run(
    arrivals: Sequence[Arrival],
    step: Step,
    policies: Policies,
    *,
    max_rows: int = 128,
    max_seqs: int = 32,
    pages: int = 20_000,
    reuse: Reuse | None = None,
) -> list[Life]:
    """All of them served; pages of 16 tokens."""
    room = Room(groups=(PageGroup(),), num_blocks=(pages,), num_slots=1, has_slots=False)
    return simulate(arrivals, policies, Limits(max_rows=max_rows, max_seqs=max_seqs), room, World(seconds=step), reuse)


def lognormal(rng: random.Random, middle: float, sigma: float, most: int) -> int:
    """A length with this median, between 4 and `most`."""
    return min(max(4, round(rng.lognormvariate(math.log(middle), sigma))), most)


def at_share(values: Sequence[float], share: float) -> float:
    """The smallest of them that so many do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def write(
    name: str, file: str, rows: Mapping[str, tuple[str, Sequence[float]]], predictions: Mapping[str, bool], **about: Any
) -> None:
    """Print and record. rows: by quantity, its unit and its runs. predictions: each with whether it held. about: the
    seeds, the clock and whatever else is needed to judge the numbers."""
    for quantity, (unit, values) in rows.items():
        print(f"{quantity:72} {sorted(values)[len(values) // 2]:10.4g} {unit}")
    for text, held in predictions.items():
        print(f"{'held' if held else 'DID NOT HOLD'}: {text}")
    machine = describe_machine() | {"shown": "simulated", "predictions": dict(predictions), **about}
    results = [result(quantity, unit, values) for quantity, (unit, values) in rows.items()]
    samples = {quantity: values for quantity, (_, values) in rows.items()}
    record = as_record(name, shlex.join(["python", *sys.argv]), machine, results, samples)
    (RECORDS / f"claim_{file}.json").write_text(json.dumps(record, indent=1) + "\n")
