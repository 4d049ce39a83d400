"""What the claims about searches share: many questions, one search, and a record."""

import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _tasks import Task

from stretto import LLM, AsyncLLM, Sampling
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result
from stretto.solve import Outcome, SearchOptions, run_search
from stretto.solve.model import Hosted, Model

RECORDS = Path(__file__).parents[1] / "records"
SAMPLING = Sampling(temperature=0.7, max_tokens=64, stop=".", seed=1)  # a worked sum ends with the first full stop


def solve_all(llm: LLM, tasks: Sequence[Task], ways: Mapping[str, SearchOptions]) -> dict[str, list[Outcome]]:
    """What every way of searching says to every question: the ways take turns."""

    async def main() -> dict[str, list[Outcome]]:
        found: dict[str, list[Outcome]] = {name: [] for name in ways}
        async with AsyncLLM(llm) as serving:
            models: list[Model] = [Hosted(serving, raw=True)]
            for task in tasks:
                for name, options in ways.items():
                    found[name].append(await run_search(models, task.question, options, SAMPLING))
        return found

    return asyncio.run(main())


def accuracy(outcomes: Sequence[Outcome], tasks: Sequence[Task]) -> list[float]:
    """100 for every right answer, else 0."""
    return [100.0 * (one.answer == task.answer) for one, task in zip(outcomes, tasks, strict=True)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_record(file: str, name: str, rows: Mapping[str, tuple[str, float]], about: Mapping[str, Any]) -> None:
    """rows: quantity -> unit and value, a mean over all questions. Printed, too."""
    for quantity, (unit, value) in rows.items():
        print(f"{quantity:60} {value:10.2f} {unit}")
    found = [result(quantity, unit, [value]) for quantity, (unit, value) in rows.items()]
    samples = {quantity: [value] for quantity, (_, value) in rows.items()}
    record = as_record(name, shlex.join(["python", *sys.argv]), describe_machine() | dict(about), found, samples)
    (RECORDS / file).write_text(json.dumps(record, indent=1))
