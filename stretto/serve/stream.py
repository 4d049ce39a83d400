"""Server-sent events, in the form that real clients read.

Every event is one `data:` line and a blank line. There is no `id:` and no `retry:` line: clients of OpenAI's kind take
the comments that keep a connection open for damaged events beside them. `[DONE]` is the last event of a stream that
ended well. Where something goes wrong on the way, an event says what, and the stream ends without `[DONE]`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from stretto.llm.results import Chunk
from stretto.serve.errors import ApiError, fault, of_problem
from stretto.serve.json import encode
from stretto.serve.log import LOGGER
from stretto.serve.reading import Reading

QUIET_SECONDS = 15.0  # of silence, then a comment
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"
Events = Callable[[int, Chunk], list[Any]]
"""From a chunk of one request to the events that it becomes."""


class EventStream:
    """A response of events. events: per chunk; last: what follows when all requests have ended.

    The response begins with the first chunk, so that what is wrong with a request is still an ordinary error; or with a
    comment, if nothing comes for `quiet` seconds.
    """

    def __init__(
        self,
        reading: Reading,
        request_id: str,
        events: Events,
        last: Callable[[], list[Any]],
        *,
        quiet: float | None = None,
    ) -> None:
        self._reading, self._request_id, self._events, self._last = reading, request_id, events, last
        self._quiet = QUIET_SECONDS if quiet is None else quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._reading:
            first = await self._reading.next(self._quiet)
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
                       (b"x-accel-buffering", b"no")]  # fmt: skip
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                async with aclosing(self._blocks(first)) as blocks:
                    async for block in blocks:
                        await send({"type": "http.response.body", "body": block, "more_body": True})
                end = DONE
            except asyncio.CancelledError:
                raise
            except Exception as problem:
                self._reading.note(problem)
                end = event(self._told(problem).body)
            await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _blocks(self, arrival: tuple[int, Chunk] | None) -> AsyncGenerator[bytes, None]:
        while True:
            if arrival is None:
                yield PING
            else:
                block = b"".join(map(event, self._events(*arrival)))
                if block:
                    yield block
            if self._reading.is_over:
                break
            arrival = await self._reading.next(self._quiet)
        if block := b"".join(map(event, self._last())):
            yield block

    def _told(self, problem: Exception) -> ApiError:
        if (known := of_problem(problem)) is not None:
            return known
        LOGGER.error("fault", exc_info=problem, extra={"facts": {"id": self._request_id}})
        return fault(self._request_id)


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + encode(value) + b"\n\n"
