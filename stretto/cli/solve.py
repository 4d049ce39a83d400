"""`stretto solve`: several answers to a question, and the one that is taken; or a file of questions, and how many are
right."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.cli._flags import group
from stretto.cli._input import check_utf8
from stretto.cli._settings import settings
from stretto.cli._terminal import harmless, is_terminal, note, print_json, progress
from stretto.core.collector import collector_paused
from stretto.core.env import read_env
from stretto.core.errors import UserError
from stretto.core.option import argument, option
from stretto.core.sampling import Sampling
from stretto.core.settings import Configuration
from stretto.solve.options import SearchOptions

if TYPE_CHECKING:
    from stretto.cli._solve_tasks import Task
    from stretto.solve import Outcome
    from stretto.solve.model import Model

EXAMPLES = (
    'stretto solve smollm2 "What is 17 + 25?" --search vote:n=8 --budget-tokens 2000',
    'stretto solve smollm2 "What is 17 + 25?" --search ets:width=8 --scorer verifier --show-tree',
    "stretto solve smollm2 --tasks tasks.jsonl --search vote:n=16 --extract boxed --json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto solve`."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    question: str | None = argument("what to answer", default=None)
    tasks: Path | None = option(
        'questions with their answers, one a line: {"question": "...", "answer": "..."}', default=None
    )
    cheap: str | None = option("a cheaper model, for searches that use two", default=None, metavar="MODEL")
    system: str | None = option("system message of the conversation", default=None)
    raw: bool = option("continue the question as it is, without a chat template", default=False)
    show_tree: bool = option("print the tree of texts, with scores and answers", default=False)
    json: bool = option("print one JSON object: the answer, what it took, and the tree", default=False)
    search: SearchOptions = group("how the answer is found", SearchOptions)
    sampling: Sampling = group("how tokens are chosen", Sampling)
    configuration: Configuration = settings()


def run(options: Options) -> int:
    """Answer one question, or all of a file; 1 if no answer was found."""
    check(options)
    from stretto.cli._solve_tasks import read_tasks

    tasks = read_tasks(options.tasks) if options.tasks is not None else None
    if tasks is None:
        return asyncio.run(_one(options))
    return asyncio.run(_all(options, tasks))


def check(options: Options) -> None:
    """Raise UserError for whatever can be refused without the model, and not by the limits of one option."""
    if (options.question is None) == (options.tasks is None):
        raise UserError("one question or --tasks FILE", why=f"got {'both' if options.tasks else 'neither'}")
    if options.question == "":
        raise UserError("the question is empty")
    if options.raw and options.system is not None:
        raise UserError("--raw and --system exclude each other", why="--raw sends the question without a chat template")
    if options.json and options.show_tree:
        raise UserError("--json and --show-tree exclude each other", why="the tree is in the JSON object")
    for text in (options.question, options.system, *options.sampling.stops):
        check_utf8(text or "", "the command line")


async def _one(options: Options) -> int:
    from stretto.cli._solve_live import Live
    from stretto.cli._solve_tree import tree_lines

    assert options.question is not None
    async with _models(options) as models:
        outcome = await _search(models, options.question, options, Live())
    if options.json:
        print_json({"model": options.model, "question": options.question, **_how(options), **outcome.as_dict()})
        return 0 if outcome.answer is not None else 1
    shown = harmless if is_terminal(sys.stdout) else str
    if options.show_tree:
        print(shown("\n".join(tree_lines(outcome))))
    elif outcome.answer is not None:
        print(shown(outcome.text))
    if outcome.answer is not None:
        print(shown(f"answer: {outcome.answer}"))
    note(summary(outcome))
    return 0 if outcome.answer is not None else 1


async def _all(options: Options, tasks: "Sequence[Task]") -> int:
    from stretto.cli._solve_live import Live
    from stretto.cli._solve_tasks import report

    rows: list[dict[str, Any]] = []
    right = 0
    async with _models(options) as models:
        for number, task in enumerate(tasks, 1):
            live = Live(f"{number} of {len(tasks)}, {right} right · ")
            outcome = await _search(models, task.question, options, live)
            rows.append(task.row(outcome))
            right += rows[-1]["correct"]
    found = report(rows)
    if options.json:
        print_json({"model": options.model, **_how(options), **found, "tasks": rows})
        return 0
    for row in rows:
        print(f"{'right' if row['correct'] else 'wrong'}  {row['answer']}  expected {row['expected']}")
    note(
        f"{found['right']} of {found['questions']} right ({found['accuracy']:.1%});"
        f" {found['tokens_per_question']:.0f} tokens per question"
    )
    return 0


def summary(outcome: "Outcome") -> str:
    """A line about a search: votes, what it took, why it stopped."""
    spent, weights = outcome.spent, list(outcome.weights.values())
    votes = f"{weights[0]:.3g} of {sum(weights):.3g} votes" if weights else "no answer was found"
    return (
        f"{votes}; {spent.tokens:,} tokens in {spent.seconds:.1f} s, {len(outcome.nodes) - len(outcome.roots)} texts;"
        f" {spent.cached_tokens:,} of {spent.prompt_tokens:,} tokens of prompts were known;"
        f" stopped: {outcome.stopped}, seed {outcome.seed}"
    )


def _how(options: Options) -> dict[str, Any]:
    return {"how": {**dataclasses.asdict(options.search), "settings": options.configuration.settings.as_dict()}}


async def _search(models: "Sequence[Model]", question: str, options: Options, live: Any) -> "Outcome":
    from stretto.solve import run_search

    try:
        return await run_search(models, question, options.search, options.sampling, watch=live)
    finally:
        live.close()


@asynccontextmanager
async def _models(options: Options) -> "AsyncIterator[Sequence[Model]]":
    """The models, loaded; the strongest first."""
    from stretto.hub.models import resolve
    from stretto.llm import LLM, AsyncLLM
    from stretto.solve.model import Hosted

    names = [options.model, *([options.cheap] if options.cheap is not None else [])]
    async with AsyncExitStack() as stack:
        found: list[Model] = []
        for name in names:
            path, show = resolve(name, env=read_env()), progress(f"loading {name}")
            with collector_paused(for_good=True):
                llm = LLM(path, options.configuration.settings, progress=show, note=note)
            show(1, 1)
            serving = await stack.enter_async_context(AsyncLLM(llm))
            found.append(Hosted(serving, raw=options.raw, system=options.system))
        yield found
