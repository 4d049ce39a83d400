"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API.

A stream is message_start, ping, the blocks, message_delta with the reason of the end and the counts, message_stop. What
goes wrong on the way is an event `error`, after which nothing follows.
"""

from typing import Any

from starlette.types import ASGIApp

from stretto.llm.results import Chunk, Result
from stretto.serve.anthropic.blocks import messages_of
from stretto.serve.anthropic.output import Content
from stretto.serve.anthropic.schema import Counted, CountRequest, MessagesRequest
from stretto.serve.asking import Asked, ask, conversation_of, thinking_kwargs
from stretto.serve.call import Call
from stretto.serve.conversation import encode_chat
from stretto.serve.errors import ApiError, invalid
from stretto.serve.forms import response_format_of
from stretto.serve.json import Json
from stretto.serve.reply import new_id
from stretto.serve.schema import MAX_TOOLS, ChatRequest
from stretto.serve.shapes import anthropic_error
from stretto.serve.stream import EventStream, Wire, named_event
from stretto.serve.usage import cached_tokens, thinking_tokens

_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "thinking_budget": "thinking.budget_tokens",
    "chat_template_kwargs": "thinking",
}
_REFUSED = {
    "mcp_servers": "this server makes no requests of its own",
    "container": "this server runs no code",
}
_PING = {"type": "ping"}


async def create_message(call: Call, request: MessagesRequest) -> ASGIApp:
    """Answer a conversation."""
    asked = await ask(call, _as_chat(call, request), _NAMES)
    message = _Message(call, request, asked)
    reading = asked.reading(call, message.id)
    if request.stream:
        wire = Wire(problem=message.failed, ping=named_event(_PING))
        return EventStream(reading, call.id, message.events, message.last, wire=wire, first=message.first)
    with reading:
        results = await reading.results()
    return Json(message.whole(results[0]))


async def count_tokens(call: Call, request: CountRequest) -> ASGIApp:
    """Tokens of the prompt that these messages become."""
    llm = call.service.model(request.model)
    chat = ChatRequest(**_shared(call, request))
    return Json({"input_tokens": len(await encode_chat(call.service, llm, conversation_of(chat)))})


def _as_chat(call: Call, request: MessagesRequest) -> ChatRequest:
    """The same in the form of `/v1/chat/completions`."""
    return ChatRequest(
        **_shared(call, request),
        max_completion_tokens=request.max_tokens,
        stop=request.stop_sequences,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
    )


def _shared(call: Call, request: Counted) -> dict[str, Any]:
    """The fields that say what the prompt is."""
    for name, why in _REFUSED.items():
        if getattr(request, name, None):
            raise invalid(f"{name}: {why}", name, "unsupported")
    messages, skipped = messages_of(request.messages, request.system)
    call.note_skipped("blocks of other types are left out", skipped)
    config = request.output_config
    choice = request.tool_choice or {}
    return {
        "model": request.model,
        "messages": messages,
        "tools": _tools(call, request) or None,
        "tool_choice": _choice(choice),
        "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") is True else None,
        "response_format": response_format_of((config and config.format) or request.output_format),
        "reasoning_effort": config.effort if config else None,
        "chat_template_kwargs": _thinking(request),
    }


def _thinking(request: Counted) -> dict[str, Any] | None:
    thinking = request.thinking
    if thinking is None or thinking.type == "adaptive":
        return None  # as the template has it
    kwargs: dict[str, Any] = dict(thinking_kwargs(thinking.type == "enabled"))
    if thinking.budget_tokens is not None and thinking.type == "enabled":
        kwargs["thinking_budget"] = thinking.budget_tokens
    return kwargs


def _choice(choice: dict[str, Any]) -> str | dict[str, Any] | None:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    known = {"auto": "auto", "any": "required", "none": "none"}
    if kind is not None and (not isinstance(kind, str) or kind not in known):
        raise invalid("tool_choice.type must be auto, any, tool or none", "tool_choice.type", "invalid_value")
    return known[kind] if kind is not None else None


def _tools(call: Call, request: Counted) -> list[dict[str, Any]]:
    """The tools with a schema, as the template reads them. Those that Anthropic defines or runs are left out."""
    found, skipped = list[dict[str, Any]](), list[str]()
    for tool in request.tools or ():
        if tool.get("type", "custom") != "custom":
            skipped.append(str(tool.get("type")))
            continue
        fields = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
        found.append({"type": "function", "function": {**fields, "parameters": tool.get("input_schema", {})}})
    call.note_skipped("tools of other types are left out", skipped)
    if len(found) > MAX_TOOLS:
        raise invalid(f"tools: {len(found)} tools; at most {MAX_TOOLS} are taken", "tools")
    return found


class _Message:
    """A message while it grows."""

    def __init__(self, call: Call, request: MessagesRequest, asked: Asked) -> None:
        self._call, self._request, self._asked = call, request, asked
        self.id, self._content, self._model = new_id("msg"), Content(), call.service.shown(request.model)
        self._result: Result | None = None

    def first(self) -> list[Any]:
        """What a stream begins with."""
        usage = self._counts(len(self._asked.ids), 0, 0)
        return [{"type": "message_start", "message": self._value([], None, None, usage)}, _PING]

    def events(self, number: int, chunk: Chunk) -> list[Any]:
        """What a chunk of the engine becomes."""
        self._result = chunk.result
        return self._content.grow(self._asked.readers[0].read(chunk))

    def last(self) -> list[Any]:
        """What a stream ends with."""
        result = self._result
        assert result is not None
        delta = {"stop_reason": self._reason(result), "stop_sequence": result.stop_string}
        end = {"type": "message_delta", "delta": delta, "usage": self._usage(result)}
        return [*self._content.finish(), end, {"type": "message_stop"}]

    def whole(self, result: Result) -> dict[str, Any]:
        """The message of an answer that is not streamed."""
        self._content.grow(self._asked.readers[0].whole(result.text))
        return self._value(self._content.blocks, self._reason(result), result.stop_string, self._usage(result))

    def failed(self, problem: ApiError) -> bytes:
        """The end of a stream in which something goes wrong."""
        return named_event(anthropic_error(problem, self._call.id))

    def _value(
        self, content: list[Any], reason: str | None, stop_sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self._model,
                "content": content, "stop_reason": reason, "stop_sequence": stop_sequence, "usage": usage}  # fmt: skip

    def _reason(self, result: Result) -> str:
        if result.finish_reason == "length":
            is_cut = result.usage.completion_tokens >= self._request.max_tokens
            return "max_tokens" if is_cut else "model_context_window_exceeded"
        if result.stop_string is not None:
            return "stop_sequence"
        return "tool_use" if self._asked.readers[0].num_calls else "end_turn"

    def _usage(self, result: Result) -> dict[str, Any]:
        cached, count = cached_tokens(result), result.usage.completion_tokens
        thought = thinking_tokens(self._asked.llm.llm.tokenizer, result, self._asked.readers[0])
        counts = self._counts(result.usage.prompt_tokens - cached, cached, count)
        return counts | {"output_tokens_details": {"thinking_tokens": thought}}

    def _counts(self, prompt: int, cached: int, completion: int) -> dict[str, Any]:
        """prompt: tokens of it that were computed; Anthropic counts those that were found beside them."""
        return {"input_tokens": prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
                "output_tokens": completion}  # fmt: skip
