"""`Requests`: what a search sends to its models, within a budget."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from stretto.core.sampling import Sampling
from stretto.llm.results import Chunk, Result
from stretto.solve.budget import Budget
from stretto.solve.model import Model
from stretto.solve.outcome import Spent


class Requests:
    """Runs requests, and counts. was_short: a request got fewer tokens than it wanted, or was ended by the deadline."""

    def __init__(self, models: Sequence[Model], budget: Budget) -> None:
        self.models, self.budget, self.was_short = models, budget, False
        self._count = self._prompt_tokens = self._cached_tokens = 0

    async def run(
        self, ids: Sequence[int], sampling: Sampling, model: int, read: Callable[[Chunk], None] | None = None
    ) -> Result | None:
        """Write behind `ids`, and wait for the end; `read` gets every chunk. None: the budget ended it, or kept it out.

        The budget is asked for `sampling.max_tokens`, of which it may give a part.
        """
        wanted, used, result, granted = sampling.max_tokens, 0, None, 0
        assert wanted is not None
        try:
            async with asyncio.timeout_at(self.budget.deadline) as limit:
                granted = await self.budget.reserve(wanted)
                if granted:
                    self._count += 1
                    stream = self.models[model].stream(ids, replace(sampling, max_tokens=granted))
                    async with aclosing(stream) as chunks:
                        async for chunk in chunks:
                            used, result = used + len(chunk.token_ids), chunk.result
                            if read is not None:
                                read(chunk)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            if granted:
                self.budget.settle(granted, used, is_whole=result is not None)
        self.was_short |= result is None or (result.finish_reason == "length" and used < wanted)
        if result is not None:
            self._prompt_tokens += result.usage.prompt_tokens
            self._cached_tokens += result.usage.cached_tokens
        return result

    def spent(self) -> Spent:
        """So far, by requests that ended."""
        return Spent(
            tokens=self.budget.spent,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            requests=self._count,
            seconds=self.budget.seconds,
        )
