"""`/v1/responses`: OpenAI's newer API, without its state.

Nothing is stored, so nothing can be referred to: the client sends the whole conversation each time. Every event of a
stream has its name in an `event:` line and a growing `sequence_number`; the last one is `response.completed`,
`response.incomplete` or `response.failed`, and there is no `[DONE]`.
"""

import time
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp

from stretto.llm.results import Chunk, Result
from stretto.serve.asking import Asked, ask
from stretto.serve.call import Call
from stretto.serve.errors import ApiError, TooLong, invalid
from stretto.serve.forms import response_format_of
from stretto.serve.json import Json
from stretto.serve.reply import new_id
from stretto.serve.responses.items import messages_of
from stretto.serve.responses.output import Output
from stretto.serve.responses.schema import ResponsesRequest
from stretto.serve.schema import MAX_TOOLS, ChatRequest, Sampled
from stretto.serve.stream import EventStream, Wire, named_event
from stretto.serve.usage import about, cached_tokens, thinking_tokens, timings

_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_REFUSED = {
    "previous_response_id": "nothing is stored here; send the whole conversation as `input`",
    "conversation": "nothing is stored here; send the whole conversation as `input`",
    "prompt": "nothing is stored here; send `instructions` and `input`",
    "background": "a response that nobody waits for would have to be stored, and nothing is stored here",
    "top_logprobs": "log-probabilities are given by /v1/chat/completions",
    "n": "a response has one answer",
    "max_tokens": "use `max_output_tokens`",
    "echo_params": "a response says temperature and top_p",
    "return_token_ids": "token ids are given by /v1/chat/completions",
}
_OWN = ("store", "metadata", "user", "stream", "stream_options")  # fields of `Sampled` that are answered here


async def respond(call: Call, request: ResponsesRequest) -> ASGIApp:
    """Answer a conversation."""
    _refuse(request)
    chat = _as_chat(call, request)
    response = _Response(call, request)
    try:
        asked = await ask(call, chat, _NAMES)
    except TooLong as problem:
        if not request.stream:
            raise
        return response.refused(problem)  # clients that shorten their history listen for it in the stream only
    reading = asked.reading(call, response.id)
    response.asked = asked
    if request.stream:
        wire = Wire(problem=response.failed)
        return EventStream(reading, call.id, response.events, response.last, wire=wire, first=response.first)
    with reading:
        results = await reading.results()
    return Json(response.whole(results[0]))


def _refuse(request: ResponsesRequest) -> None:
    for name, why in _REFUSED.items():
        if getattr(request, name) not in (None, False, 0) and not (name == "n" and request.n == 1):
            raise invalid(f"{name}: {why}", name, "unsupported")
    for name in request.include or ():
        if name == "message.output_text.logprobs":
            raise invalid(f"include: {_REFUSED['top_logprobs']}", "include", "unsupported")


def _as_chat(call: Call, request: ResponsesRequest) -> ChatRequest:
    """The same in the form of `/v1/chat/completions`."""
    messages, skipped = messages_of(request.input, request.instructions)
    call.note_skipped("items of other types are left out", skipped)
    tools = _tools(call, request)
    choice = request.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    sampled = {name: getattr(request, name) for name in Sampled.__struct_fields__ if name not in _OWN}
    return ChatRequest(
        **sampled,
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=response_format_of(request.text.format) if request.text else None,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        chat_template_kwargs=request.chat_template_kwargs,
    )


def _tools(call: Call, request: ResponsesRequest) -> list[dict[str, Any]]:
    """The functions among the tools, as the template reads them. Tools that OpenAI would run itself are left out."""
    found, skipped = list[dict[str, Any]](), list[str]()
    for tool in request.tools or ():
        if tool.get("type") != "function":
            skipped.append(str(tool.get("type")))
            continue
        fields = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
        found.append({"type": "function", "function": fields})
    call.note_skipped("tools of other types are left out", skipped)
    if len(found) > MAX_TOOLS:
        raise invalid(f"tools: {len(found)} functions; at most {MAX_TOOLS} are taken", "tools")
    return found


class _Response:
    """A response while it grows. asked: set before anything of the answer comes."""

    asked: Asked

    def __init__(self, call: Call, request: ResponsesRequest) -> None:
        self._call, self._request = call, request
        self.id, self._created = new_id("resp"), int(time.time())
        self._output, self._number = Output(), -1
        self._result: Result | None = None
        self._model = call.service.shown(request.model)

    def first(self) -> list[Any]:
        """What a stream begins with."""
        value = self._value("in_progress")
        return [self._numbered({"type": f"response.{name}", "response": value}) for name in ("created", "in_progress")]

    def events(self, number: int, chunk: Chunk) -> list[Any]:
        """What a chunk of the engine becomes."""
        self._result = chunk.result
        return [self._numbered(one) for one in self._output.grow(self.asked.readers[0].read(chunk))]

    def last(self) -> list[Any]:
        """What a stream ends with."""
        assert self._result is not None
        status, events = self._end(self._result)
        events.append({"type": f"response.{status}", "response": self._value(status)})
        return [self._numbered(one) for one in events]

    def whole(self, result: Result) -> dict[str, Any]:
        """The response of an answer that is not streamed."""
        self._result = result
        self._output.grow(self.asked.readers[0].whole(result.text))
        status, _ = self._end(result)
        return self._value(status)

    def failed(self, problem: ApiError) -> bytes:
        """The end of a stream in which something goes wrong."""
        error = {"code": "server_error" if problem.status == 500 else str(problem.code or problem.status),
                 "message": problem.message}  # fmt: skip
        value = self._value("failed") | {"error": error}
        return named_event(self._numbered({"type": "response.failed", "response": value}))

    def refused(self, problem: ApiError) -> Response:
        """A whole stream that says no more than that."""
        content = b"".join(map(named_event, self.first())) + self.failed(problem)
        return Response(content, media_type="text/event-stream", headers={"cache-control": "no-store"})

    def _end(self, result: Result) -> tuple[str, list[Any]]:
        is_whole = result.finish_reason != "length"
        return "completed" if is_whole else "incomplete", self._output.finish(is_whole=is_whole)

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return {**event, "sequence_number": self._number}

    def _value(self, status: str) -> dict[str, Any]:
        request, result = self._request, self._result if status in ("completed", "incomplete") else None
        value: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": self._output.items,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": (request.text and request.text.format) or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": self._usage(result) if result is not None else None,
            "user": request.user,
        }
        if result is not None:
            resolved = self.asked.sampling.resolve(self.asked.llm.llm.hints)
            value |= {"temperature": resolved.temperature, "top_p": resolved.top_p}
            value |= {"timings": timings(result), "stretto": about(result)}
        return value

    def _usage(self, result: Result) -> dict[str, Any]:
        thought = thinking_tokens(self.asked.llm.llm.tokenizer, result, self.asked.readers[0])
        return {
            "input_tokens": result.usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached_tokens(result)},
            "output_tokens": result.usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": result.usage.total_tokens,
        }
