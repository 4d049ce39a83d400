"""Server-sent events, in the form that real clients read.

Every event is one `data:` line and a blank line. There is no `id:` and no `retry:` line: clients of OpenAI's kind take
the comments that keep a connection open for damaged events beside them. `[DONE]` is the last event of a stream that
ended well. Where something goes wrong on the way, an event says what, and the stream ends without `[DONE]`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
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


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + encode(value) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """One event whose name, the value's `type`, stands before it, too."""
    return f"event: {value['type']}\n".encode() + event(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How an API sends its events. problem: what ends a stream that fails; ping: sent in silence, empty = nothing is;
    end: of a stream that ended well."""

    problem: Callable[[ApiError], bytes]
    event: Callable[[Any], bytes] = named_event
    ping: bytes = PING
    end: bytes = b""
    media_type: str = "text/event-stream; charset=utf-8"


OPENAI = Wire(event=event, problem=lambda problem: event(problem.body), end=DONE)


def headers_of(wire: Wire) -> list[tuple[bytes, bytes]]:
    """Of a response that is a stream."""
    return [
        (b"content-type", wire.media_type.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]


def nothing() -> list[Any]:
    """No events."""
    return []


class EventStream:
    """A response of events. first: what comes before all; events: per chunk; last: what follows when all requests have
    ended.

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
        wire: Wire = OPENAI,
        first: Callable[[], list[Any]] = nothing,
        quiet: float | None = None,
    ) -> None:
        self._reading, self._request_id, self._events, self._last = reading, request_id, events, last
        self._wire, self._first = wire, first
        self._quiet = QUIET_SECONDS if quiet is None else quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._reading:
            first = await self._reading.next(self._quiet)
            await send({"type": "http.response.start", "status": 200, "headers": headers_of(self._wire)})
            try:
                async with aclosing(self._blocks(first)) as blocks:
                    async for block in blocks:
                        await send({"type": "http.response.body", "body": block, "more_body": True})
                end = self._wire.end
            except asyncio.CancelledError:
                raise
            except Exception as problem:
                self._reading.note(problem)
                end = self._wire.problem(self._told(problem))
            await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _blocks(self, arrival: tuple[int, Chunk] | None) -> AsyncGenerator[bytes, None]:
        if block := self._block(self._first()):
            yield block
        while True:
            if arrival is None:
                if self._wire.ping:
                    yield self._wire.ping
            else:
                block = self._block(self._events(*arrival))
                if block:
                    yield block
            if self._reading.is_over:
                break
            arrival = await self._reading.next(self._quiet)
        if block := self._block(self._last()):
            yield block

    def _block(self, events: list[Any]) -> bytes:
        return b"".join(map(self._wire.event, events))

    def _told(self, problem: Exception) -> ApiError:
        if (known := of_problem(problem)) is not None:
            return known
        LOGGER.error("fault", exc_info=problem, extra={"facts": {"id": self._request_id}})
        return fault(self._request_id)
