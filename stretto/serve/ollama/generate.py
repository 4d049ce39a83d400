"""`/api/chat` and `/api/generate`: answers as lines of JSON, unless `stream` is false. Durations are nanoseconds.

The last line is the one that is `done`: why it ended, and the counts. A call of a tool is one line, when it is whole.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp

from stretto.llm.results import Chunk, Result
from stretto.serve.asking import Asked
from stretto.serve.call import Call
from stretto.serve.errors import ApiError
from stretto.serve.json import Json, encode
from stretto.serve.keep_alive import seconds_of
from stretto.serve.ollama.asking import ask_chat, ask_generate
from stretto.serve.ollama.schema import Generating, OllamaChat, OllamaGenerate
from stretto.serve.parts import Argued, Called, Part, Said, Thought, arguments_of
from stretto.serve.reply import new_id
from stretto.serve.stream import EventStream, Wire


def line(value: Any) -> bytes:
    """One line of a stream."""
    return encode(value) + b"\n"


def _problem(problem: ApiError) -> bytes:
    return line({"error": problem.message})


LINES = Wire(event=line, problem=_problem, ping=b"", media_type="application/x-ndjson")
"""A reader of lines takes an empty one for a broken one, so nothing is sent in silence."""


async def chat(call: Call, request: OllamaChat) -> ASGIApp:
    """Answer a conversation."""
    reply = _Chat(call, request)
    if not request.messages:
        return await reply.loaded()
    return await reply.answer(await ask_chat(call, request))


async def generate(call: Call, request: OllamaGenerate) -> ASGIApp:
    """Answer a prompt."""
    reply = _Generate(call, request)
    if not request.prompt:
        return await reply.loaded()
    return await reply.answer(await ask_generate(call, request))


def is_work(request: Generating) -> bool:
    """Whether the model must be loaded: for all but an empty request that says it is to be let go."""
    asked = request.messages if isinstance(request, OllamaChat) else getattr(request, "prompt", None)
    return bool(asked) or seconds_of(request.keep_alive) != 0


class _Reply:
    """An answer while it grows."""

    def __init__(self, call: Call, request: Generating) -> None:
        self._call, self._request = call, request
        self._result: Result | None = None
        self._calls: list[tuple[str, list[str]]] = []  # names and pieces of arguments; all but the last one are told
        self._parts: list[Part] = []

    def shown(self, said: str, thought: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The fields that hold these."""
        raise NotImplementedError

    async def loaded(self) -> Json:
        """The answer to an empty request, which asks for the model to be loaded, or to be let go."""
        slot, is_load = self._call.models.find(self._request.model), is_work(self._request)
        slot.service.check_open()
        if not is_load and not slot.held:
            await self._call.models.unload(slot)
        reason = "load" if is_load else "unload"
        return Json({**self._head(), **self.shown("", "", []), "done": True, "done_reason": reason})

    async def answer(self, asked: Asked) -> ASGIApp:
        """The response."""
        reading = asked.reading(self._call, new_id("ollama"))
        reader = asked.readers[0]

        def events(number: int, chunk: Chunk) -> list[Any]:
            self._result = chunk.result
            return [self._line(part) for part in self._whole(reader.read(chunk))]

        def last() -> list[Any]:
            assert self._result is not None
            calls = self._told()
            return [*([self._piece("", "", calls)] if calls else []), self._end(self._result, "", "", [])]

        if self._request.stream is not False:
            return EventStream(reading, self._call.id, events, last, wire=LINES)
        with reading:
            result = (await reading.results())[0]
        parts = reader.whole(result.text)
        told = [call for part in self._whole(parts) if isinstance(part, list) for call in part] + self._told()
        said = "".join(part.text for part in parts if isinstance(part, Said))
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        return Json(self._end(result, said, thought, told))

    def _whole(self, parts: Sequence[Part]) -> list[Part | list[dict[str, Any]]]:
        """The parts, with calls in place of their pieces."""
        found: list[Part | list[dict[str, Any]]] = []
        for part in parts:
            if isinstance(part, Argued):
                self._calls[-1][1].append(part.text)
            elif isinstance(part, Called):
                if calls := self._told():
                    found.append(calls)
                self._calls.append((part.name, []))
            else:
                found.append(part)
        return found

    def _told(self) -> list[dict[str, Any]]:
        """The last call, if there is one and its arguments are whole."""
        if not self._calls:
            return []
        name, pieces = self._calls[-1]
        arguments = arguments_of("".join(pieces))
        if arguments is None:
            return []
        return [{"function": {"index": len(self._calls) - 1, "name": name, "arguments": arguments}}]

    def _line(self, part: Part | list[dict[str, Any]]) -> dict[str, Any]:
        if isinstance(part, list):
            return self._piece("", "", part)
        if isinstance(part, Thought):
            return self._piece("", part.text, [])
        assert isinstance(part, Said)
        return self._piece(part.text, "", [])

    def _piece(self, said: str, thought: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(), **self.shown(said, thought, calls), "done": False}

    def _end(self, result: Result, said: str, thought: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        times, total = result.timings, time.monotonic() - self._call.record.arrived
        return {
            **self._head(),
            **self.shown(said, thought, calls),
            "done": True,
            "done_reason": result.finish_reason,
            "total_duration": int(1e9 * total),
            "load_duration": 0,
            "prompt_eval_count": result.usage.prompt_tokens,
            "prompt_eval_duration": int(1e9 * times.prefill_s),
            "eval_count": result.usage.completion_tokens,
            "eval_duration": int(1e9 * times.decode_s),
        }

    def _head(self) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self._request.model, "created_at": now}


class _Chat(_Reply):
    def shown(self, said: str, thought: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class _Generate(_Reply):
    def shown(self, said: str, thought: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"response": said, **({"thinking": thought} if thought else {})}
