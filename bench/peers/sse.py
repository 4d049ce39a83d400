"""One streamed completion over HTTP, as a client sees it: when each event came, on this clock.

Sockets of asyncio and JSON, nothing else: the client shares the processors with the server that is measured.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any


class ServerError(Exception):
    """An answer that is no stream, or a stream that breaks off."""


@dataclass(slots=True)
class Answer:
    """A streamed answer. sent: when the request was; times: of every event with text, in seconds on the same clock.

    prompt, output: tokens, as the server counts them. text: all of it.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    prompt: int = 0
    output: int = 0
    text: str = ""

    @property
    def first_s(self) -> float:
        """Time to the first token."""
        return self.times[0] - self.sent

    @property
    def between_s(self) -> float:
        """Mean time between tokens."""
        return (self.times[-1] - self.times[0]) / max(self.output - 1, 1)

    @property
    def gaps_s(self) -> list[float]:
        """Between one event and the next."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


async def complete(
    port: int, prompt: str | list[int], new: int, *, stop_after: int | None = None, **fields: Any
) -> Answer:
    """Exactly `new` tokens behind a prompt, greedy if `fields` of the request do not say otherwise. Raises ServerError,
    also if there are fewer.

    stop_after: leave after so many events, as a client that disconnects: `output` is 0 then.
    """
    body = {
        "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True}, **fields,
    }  # fmt: skip
    answer = Answer(time.perf_counter())
    try:
        async with aclosing(events(port, "/v1/completions", body)) as stream:
            async for at, event in stream:
                _take(answer, at, event)
                if stop_after is not None and len(answer.times) >= stop_after:
                    return answer
    except (OSError, EOFError, ValueError) as error:
        raise ServerError(f"{type(error).__name__}: {error}") from error
    if answer.output != new:
        raise ServerError(f"{answer.output} tokens, and not {new}")
    if not answer.times:  # tokens without a text
        answer.times.append(time.perf_counter())
    return answer


def _take(answer: Answer, at: float, event: dict[str, Any]) -> None:
    if "error" in event:
        raise ServerError(str(event["error"])[:200])
    if usage := event.get("usage"):
        answer.prompt, answer.output = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in event.get("choices") or ():
        if choice.get("text"):
            answer.text += choice["text"]
            answer.times.append(at)


async def events(port: int, path: str, body: dict[str, Any]) -> AsyncGenerator[tuple[float, dict[str, Any]], None]:
    """The events of a stream with the time at which each came. Raises ServerError, OSError, EOFError, ValueError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ncontent-type: application/json"
        writer.write(f"{head}\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
        status = (await reader.readline()).split()
        chunked = False
        while line := (await reader.readline()).strip():
            chunked |= line.lower().replace(b" ", b"") == b"transfer-encoding:chunked"
        if len(status) < 2 or status[1] != b"200":
            said = (await reader.read(2000)).decode(errors="replace")
            raise ServerError(f"status {b' '.join(status[1:]).decode()}: {said}")
        async for line in _lines(reader, chunked=chunked):
            text = line.strip()
            if text == b"data: [DONE]":
                return
            if text.startswith(b"data:"):
                yield time.perf_counter(), json.loads(text[5:])
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _lines(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    """Lines of a body, as soon as they are whole."""
    left = b""
    while block := await _block(reader, chunked=chunked):
        *lines, left = (left + block).split(b"\n")
        for line in lines:
            yield line


async def _block(reader: asyncio.StreamReader, *, chunked: bool) -> bytes:
    if not chunked:
        return await reader.read(1 << 16)
    size = int((await reader.readline()).split(b";")[0], 16)
    block = await reader.readexactly(size + 2)
    return block[:-2]
