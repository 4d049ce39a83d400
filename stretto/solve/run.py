"""`solve`: one question, one search."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.core.sampling import Sampling
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.sync import LLM
from stretto.solve.budget import Budget
from stretto.solve.group import Group
from stretto.solve.model import Hosted, Model
from stretto.solve.options import SearchOptions
from stretto.solve.outcome import Outcome
from stretto.solve.status import outcome_of

Watch = Callable[[Group], None]


async def run_search(
    models: Sequence[Model],
    question: str,
    options: SearchOptions | None = None,
    sampling: Sampling | None = None,
    *,
    watch: Watch = lambda group: None,
) -> Outcome:
    """Search an answer to `question`. Cancelled, it leaves nothing running.

    models: those that write, the strongest first (searches other than `squeeze` use that one alone); they may serve
    others meanwhile. sampling: of the texts. watch: called whenever tokens came, to look at `status_of`.
    """
    options, sampling = options or SearchOptions(), sampling or Sampling()
    if sampling.seed is None:
        sampling = replace(sampling, seed=random.SystemRandom().getrandbits(63))
    group = Group(
        models,
        question,
        budget=Budget(options.budget_tokens, options.budget_seconds),
        sampling=sampling,
        extract=options.make_extract(),
        scorer=options.make_scorer(),
        watch=watch,
    )
    return outcome_of(group, await options.make_search().run(group))


def solve(
    model: str | Path | LLM,
    question: str,
    options: SearchOptions | None = None,
    sampling: Sampling | None = None,
    *,
    raw: bool = False,
    system: str | None = None,
    watch: Watch = lambda group: None,
    **changes: Any,
) -> Outcome:
    """Search an answer to `question` with one model, and wait for it (inside an event loop: `run_search`).

    model: an `LLM`, or what `LLM` takes. raw: the question is a text that the model continues, in place of a turn in
    its chat template. system: a message before the question. changes: fields of `SearchOptions` that differ.
    """
    options = replace(options or SearchOptions(), **changes)
    llm = model if isinstance(model, LLM) else LLM(model)

    async def main() -> Outcome:
        async with AsyncLLM(llm) as serving:
            return await run_search([Hosted(serving, raw=raw, system=system)], question, options, sampling, watch=watch)

    return asyncio.run(main())
