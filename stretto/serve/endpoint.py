"""`Post`: from a body to a response, for as long as the client is there.

The work runs beside a watch on the connection. If the client leaves, the work is cancelled where it stands, and
whatever it holds ends with it: prompts that are encoded, requests that are queued or run. This holds for answers that
are streamed and for those that are not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from stretto.serve.body import Gone, parse, read_body
from stretto.serve.call import Call
from stretto.serve.errors import invalid
from stretto.serve.service import Service

T = TypeVar("T", bound=msgspec.Struct)
Handler = Callable[[Call, T], Awaitable[ASGIApp]]
CLIENT_LEFT = 499  # for the log only: nobody hears it


class Post(Generic[T]):
    """An endpoint. kind: of its bodies; handle: makes the response, which is an ASGI application."""

    def __init__(self, service: Service, kind: type[T], handle: Handler[T]) -> None:
        self._service, self.kind, self._handle = service, kind, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(self._service, scope["state"]["record"])
        try:
            body = await read_body(scope, receive, self._service.config.max_body)
        except Gone:
            call.record.status = CLIENT_LEFT
            return
        request, unknown = parse(body, self.kind)
        if unknown and self._service.config.strict:
            raise invalid(f"Unknown fields: {', '.join(sorted(unknown)[:16])}", unknown[0], "unknown_field")
        call.note_unknown(unknown)

        async def answer() -> None:
            response = await self._handle(call, request)
            await response(scope, receive, send)

        self._service.num_calls += 1
        try:
            if not await while_connected(answer(), receive):
                call.record.status = CLIENT_LEFT
        finally:
            self._service.num_calls -= 1


async def while_connected(work: Awaitable[None], receive: Receive) -> bool:
    """Run `work` until it ends or the client leaves; whether it ended by itself. Raises what it raises."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
