"""A batch through the routes of the server, in this process and without a socket: what a line is answered with is what
a client would be answered.

Lines enter in the order of the file, `window` of them at a time, and wait in the engine's queue, where the order policy
finds those that begin alike.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.sync import LLM
from stretto.serve.app import Access, make_app
from stretto.serve.batch.lines import Answers, Place, Request, read_request
from stretto.serve.errors import invalid
from stretto.serve.models import alone
from stretto.serve.service import Config, Service

URLS = frozenset({"/v1/chat/completions", "/v1/completions"})
_PER_LINE = 128  # requests that a line may become (`n`, several prompts)


@dataclass(slots=True)
class Totals:
    """Of the lines that were answered in this run. failed: with a status that is no success."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = field(default=0.0)

    def add(self, status: int, body: dict[str, Any]) -> None:
        """One more."""
        self.answered += 1
        self.failed += status >= 300
        usage = body.get("usage") or {}
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)
        self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


async def run_batch(
    llm: LLM,
    config: Config,
    source: Path,
    places: Sequence[Place],
    answers: Answers,
    *,
    window: int,
    progress: Callable[[int, int], None],
) -> Totals:
    """Answer the lines that have no answer yet. Whatever ends it, those that were answered are in the file."""
    left = [place for place in places if place.custom_id not in answers.ids]
    service, totals, started = Service(config), Totals(), time.perf_counter()
    app = make_app(alone(service), Access())
    service.open(AsyncLLM(llm, max_waiting=window * _PER_LINE))
    waiting = iter(left)

    async def work() -> None:
        with open(source, "rb") as file:
            for place in waiting:  # one iterator for all: each line is taken once
                request = read_request(file, place)
                status, request_id, body = await answer(app, request)
                answers.write(
                    {
                        "id": f"batch_req_{place.number}",
                        "custom_id": request.custom_id,
                        "response": {"status_code": status, "request_id": request_id, "body": body},
                        "error": None,
                    }
                )
                totals.add(status, body)
                progress(len(places) - len(left) + totals.answered, len(places))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(window, len(left))):
                group.create_task(work())
    finally:
        await service.close()
        totals.seconds = time.perf_counter() - started
    return totals


class _Streamed(msgspec.Struct, frozen=True):
    stream: Any = None


async def answer(app: ASGIApp, request: Request) -> tuple[int, str, dict[str, Any]]:
    """Status, `x-request-id` and body that the application answers with."""
    body = bytes(request.body)
    with suppress(msgspec.MsgspecError):  # the application says what is wrong with it
        if msgspec.json.decode(body, type=_Streamed).stream:
            return 400, "", invalid("stream: a batch has whole answers", "stream", "unsupported").body
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "path": request.url,
        "raw_path": request.url.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }
    gone, sent, found = asyncio.Event(), list[bytes](), dict[str, Any]()
    has_body = False

    async def receive() -> Message:
        nonlocal has_body
        if has_body:
            await gone.wait()  # nobody leaves
            return {"type": "http.disconnect"}
        has_body = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            found.update(status=message["status"], id=headers.get(b"x-request-id", b"").decode())
        else:
            sent.append(message.get("body", b""))

    await app(scope, receive, send)
    return found["status"], found["id"], msgspec.json.decode(b"".join(sent), type=dict[str, Any])
