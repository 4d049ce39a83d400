"""Questions with known answers, from a file; what came of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.core.errors import UserError
from stretto.core.files import read_text
from stretto.solve.extract import normal

if TYPE_CHECKING:
    from stretto.solve import Outcome


@dataclass(frozen=True, slots=True)
class Task:
    """answer: in the spelling in which answers are compared."""

    question: str
    answer: str

    def row(self, outcome: "Outcome") -> dict[str, Any]:
        """What came of it, for JSON."""
        return {
            "question": self.question,
            "answer": outcome.answer,
            "expected": self.answer,
            "correct": outcome.answer == self.answer,
            "weights": dict(outcome.weights),
            "stopped": outcome.stopped,
            "seed": outcome.seed,
            "spent": asdict(outcome.spent),
        }


def read_tasks(path: Path) -> list[Task]:
    """Every line of a file, checked. Raises UserError that names the line."""
    tasks = [
        _task(line, f"{path}, line {number}")
        for number, line in enumerate(read_text(path, "--tasks").splitlines(), 1)
        if line.strip()
    ]
    if not tasks:
        raise UserError(f"{path} holds no questions")
    return tasks


def report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many answers are right, and what they took."""
    right, tokens = sum(row["correct"] for row in rows), sum(row["spent"]["tokens"] for row in rows)
    return {
        "questions": len(rows),
        "right": right,
        "accuracy": right / len(rows),
        "tokens": tokens,
        "tokens_per_question": tokens / len(rows),
    }


def _task(line: str, where: str) -> Task:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{where} is not JSON", why=str(problem)) from None
    if not isinstance(found, dict) or set(found) != {"question", "answer"}:
        raise UserError(f"{where} is not an object with question and answer, and nothing else", why=f"it is {line:.80}")
    question, answer = found["question"], found["answer"]
    if not isinstance(question, str) or not question:
        raise UserError(f"{where}: the question is {question!r:.80}", why="it must be a text")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"{where}: the answer is {answer!r:.80}", why="it must be a text or a number")
    return Task(question, normal(str(answer)))
