"""Sums whose steps a program can check: what a model of 135 million weights can be asked, with worked examples."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """question: a plain text that a model goes on with. answer: in the spelling of `stretto.solve.extract.normal`."""

    question: str
    answer: str


def sums(num: int, terms: int, most: int = 50, examples: int = 4, seed: int = 1) -> list[Task]:
    """Different sums of `terms` numbers below `most`, behind `examples` that are worked out, one addition a line."""
    noise, found = random.Random(f"{terms}/{seed}"), dict[tuple[int, ...], None]()
    while len(found) < num + examples:
        found[tuple(noise.randrange(2, most) for _ in range(terms))] = None
    shown, asked = list(found)[:examples], list(found)[examples:]
    before = "".join(f"{_ask(numbers)}{_work(numbers)}\n\n" for numbers in shown)
    return [Task(before + _ask(numbers), str(sum(numbers))) for numbers in asked]


def _ask(numbers: Sequence[int]) -> str:
    return f"Add {', '.join(map(str, numbers))}.\n"


def _work(numbers: Sequence[int]) -> str:
    lines, total = [], numbers[0]
    for number in numbers[1:]:
        lines.append(f"{total} + {number} = {total + number}")
        total += number
    return "\n".join([*lines, f"The sum is {total}."])
