"""`Reading`: the answers of one call while they are read. Whatever ends the reading ends the requests."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.results import Chunk, Result
from stretto.llm.submission import Submission
from stretto.serve.call import Call
from stretto.serve.errors import ApiError


class Reading:
    """Queues the requests of a call when it is made, and reads them inside of `with`.

    reply_id: of the answer. timeout: seconds from the arrival of the call; None = no limit. Raises what
    `AsyncLLM.submit` raises, and then nothing is left behind.
    """

    def __init__(
        self, call: Call, llm: AsyncLLM, submissions: Sequence[Submission], *, reply_id: str, timeout: float | None
    ) -> None:
        self._call, self._reply_id, self._timeout = call, reply_id, timeout
        metrics = call.service.metrics
        self._metrics = [metrics.request(call.record.arrived) for _ in submissions]
        self._first: float | None = None
        self._ended = [False] * len(submissions)
        self._stack, self._reason = ExitStack(), "error"
        self._answers = llm.submit(submissions)
        self._stack.callback(self._answers.drop)

    def __enter__(self) -> Self:
        ids = (self._reply_id, self._call.id)
        self._stack.enter_context(self._call.service.live.entered(self._call.tenant, ids, self._answers))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if problem is not None:
            self.note(problem)
        for metrics, ended in zip(self._metrics, self._ended, strict=True):
            if not ended:
                metrics.abort(self._reason)

    @property
    def is_over(self) -> bool:
        """Whether every request has given its result."""
        return self._answers.is_over

    def note(self, problem: BaseException) -> None:
        """Why the reading ends early, for the metrics."""
        if isinstance(problem, asyncio.CancelledError):
            self._reason = "disconnect"
        elif isinstance(problem, ApiError):
            self._reason = str(problem.code)

    async def next(self, quiet: float | None = None) -> tuple[int, Chunk] | None:
        """The number of a request and its next chunk; None after `quiet` seconds without one. Raises what goes wrong
        with one of the requests, and ApiError at the end of the timeout."""
        now, until = time.monotonic(), None
        if self._timeout is not None:
            until = self._call.record.arrived + self._timeout
        waits = [quiet] if quiet is not None else []
        waits += [until - now] if until is not None else []
        try:
            async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                number, chunk = await self._answers.next()
        except TimeoutError:
            if until is not None and time.monotonic() >= until:
                raise ApiError(
                    408, f"No answer within {self._timeout:g} seconds", param="timeout", code="timeout"
                ) from None
            return None
        self._note(number, chunk)
        return number, chunk

    async def results(self) -> list[Result]:
        """All results, in the order of the requests."""
        found: dict[int, Result] = {}
        while not self.is_over:
            got = await self.next()
            assert got is not None, "without `quiet` there is always a chunk"
            number, chunk = got
            if chunk.result is not None:
                found[number] = chunk.result
        return [found[number] for number in sorted(found)]

    def _note(self, number: int, chunk: Chunk) -> None:
        self._metrics[number].chunk(chunk)
        facts = self._call.record.facts
        if self._first is None:
            self._first = time.monotonic()
            facts["ttft_ms"] = round(1e3 * (self._first - self._call.record.arrived), 1)
        facts["completion_tokens"] = facts.get("completion_tokens", 0) + len(chunk.token_ids)
        if chunk.result is not None:
            self._ended[number] = True
            facts["prompt_tokens"] = chunk.result.usage.prompt_tokens
            facts["finish_reason"] = chunk.result.finish_reason
