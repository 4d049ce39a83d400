"""`Early`: a stream that begins before its answer can, because its model is still loaded."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Send

from stretto.serve import stream
from stretto.serve.call import Call
from stretto.serve.errors import ApiError, fault, of_problem
from stretto.serve.log import LOGGER
from stretto.serve.shapes import api_of, error_body

T = TypeVar("T")


class Early:
    """In the place of `send` for whoever answers. While a model is waited for, the client is sent what keeps a
    connection open, as it is while a long prompt is read. The first of it begins the response, whose status is then
    200: what goes wrong later is an event, after which the stream ends."""

    def __init__(self, call: Call, send: Send) -> None:
        self._call, self._send, self._has_begun = call, send, False
        self._api = api_of(call.record.path)

    async def __call__(self, message: Message) -> None:
        if not (self._has_begun and message["type"] == "http.response.start"):
            await self._send(message)

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives or raises."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=stream.QUIET_SECONDS))[0]:
                await self._ping()
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def tell(self, problem: Exception) -> None:
        """The end of a stream that has begun; raises the problem if none has."""
        if not self._has_begun:
            raise problem
        known = of_problem(problem)
        if known is None:
            LOGGER.error("fault", exc_info=problem, extra={"facts": {"id": self._call.id}})
            known = fault(self._call.id)
        await self._body(self._event(known), more=False)

    async def _ping(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            headers = stream.headers_of(stream.OPENAI)
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._body(stream.named_event({"type": "ping"}) if self._api == "anthropic" else stream.PING)

    def _event(self, problem: ApiError) -> bytes:
        body = error_body(self._call.record.path, problem, self._call.id)
        if self._call.record.path == "/v1/responses":
            return stream.named_event({"type": "error", **body["error"], "sequence_number": 0})
        return stream.named_event(body) if self._api == "anthropic" else stream.event(body)

    async def _body(self, block: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": block, "more_body": more})
