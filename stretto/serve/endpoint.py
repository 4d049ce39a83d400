"""`Post`: from a body to a response, for as long as the client is there.

The work runs beside a watch on the connection. If the client leaves, the work is cancelled where it stands, and
whatever it holds ends with it: prompts that are encoded, requests that are queued or run. This holds for answers that
are streamed and for those that are not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Generic, TypeVar

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from stretto.serve.body import Gone, parse, read_body
from stretto.serve.call import Call
from stretto.serve.early import Early
from stretto.serve.errors import invalid
from stretto.serve.keep_alive import seconds_of
from stretto.serve.models import Models
from stretto.serve.shapes import api_of

T = TypeVar("T", bound=msgspec.Struct)
Handler = Callable[[Call, T], Awaitable[ASGIApp]]
CLIENT_LEFT = 499  # for the log only: nobody hears it


def always(request: msgspec.Struct) -> bool:
    """The model is needed."""
    return True


def never(request: msgspec.Struct) -> bool:
    """The handler finds its model itself, and does not need it in memory."""
    return False


class Post(Generic[T]):
    """An endpoint. kind: of its bodies; handle: makes the response, which is an ASGI application; loads: whether the
    model that the body names must be in memory for that."""

    def __init__(
        self, models: Models, kind: type[T], handle: Handler[T], *, loads: Callable[[T], bool] = always
    ) -> None:
        self._models, self.kind, self._handle, self._loads = models, kind, handle, loads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        models, config = self._models, self._models.first.config
        call = Call(models.first, scope["state"]["record"], models)
        try:
            body = await read_body(scope, receive, config.max_body)
        except Gone:
            call.record.status = CLIENT_LEFT
            return
        request, unknown = parse(body, self.kind)
        if unknown and config.strict:
            raise invalid(f"Unknown fields: {', '.join(sorted(unknown)[:16])}", unknown[0], "unknown_field")
        call.note_unknown(unknown)

        async def answer() -> None:
            if not self._loads(request):
                await respond(call, send)
                return
            slot = models.find(getattr(request, "model", None))
            slot.service.check_open()
            using = models.use(slot, seconds_of(getattr(request, "keep_alive", None)))
            async with AsyncExitStack() as stack:
                if slot.is_open or not is_stream(call, request):
                    await respond(replace(call, service=await stack.enter_async_context(using)), send)
                    return
                early = Early(call, send)
                try:
                    service = await early.wait(stack.enter_async_context(using))
                    await respond(replace(call, service=service), early)
                except Exception as problem:
                    await early.tell(problem)

        async def respond(call: Call, send: Send) -> None:
            call.service.num_calls += 1
            try:
                response = await self._handle(call, request)
                await response(scope, receive, send)
            finally:
                call.service.num_calls -= 1

        if not await while_connected(answer(), receive):
            call.record.status = CLIENT_LEFT


def is_stream(call: Call, request: msgspec.Struct) -> bool:
    """Whether the answer is one that is kept open in silence; lines of Ollama's are not."""
    return bool(getattr(request, "stream", None)) and api_of(call.record.path) != "ollama"


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
