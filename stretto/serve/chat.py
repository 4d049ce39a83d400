"""`/v1/chat/completions`: a conversation, answered whole or as it grows."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp

from stretto.llm.results import Chunk, Result
from stretto.serve.asking import ask
from stretto.serve.call import Call
from stretto.serve.json import Json
from stretto.serve.logprobs import of_chat
from stretto.serve.origins import Origins
from stretto.serve.parts import Argued, Called, Part, PartReader, Said, Thought
from stretto.serve.reply import Head, drafted, new_id, wants_usage
from stretto.serve.schema import ChatRequest
from stretto.serve.stream import EventStream
from stretto.serve.usage import about, timings, usage
from stretto.text.tokenizer import Tokenizer


async def chat(call: Call, request: ChatRequest) -> ASGIApp:
    """Answer a conversation."""
    asked = await ask(call, request)
    llm, tokenizer = asked.llm.llm, asked.llm.llm.tokenizer
    params = asked.sampling.resolve(llm.hints) if request.echo_params else None
    kind = "chat.completion.chunk" if request.stream else "chat.completion"
    head = Head.make("chatcmpl", kind, call.service.shown(request.model), llm, params)
    reading = asked.reading(call, head.id)
    if request.stream:
        grown = _Stream(request, head, tokenizer, asked.readers, asked.ids)
        return EventStream(reading, call.id, grown.events, grown.last)
    with reading:
        results = await reading.results()
    return Json(_whole(request, head, tokenizer, asked.readers, results))


def _reason(result: Result, reader: PartReader) -> str:
    return "tool_calls" if reader.num_calls and result.finish_reason == "stop" else result.finish_reason


def _calls(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The calls of a whole answer."""
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Called):
            found.append({"id": new_id("call"), "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif isinstance(part, Argued):
            found[part.index]["function"]["arguments"] += part.text
    return found


def _delta(part: Part) -> dict[str, Any]:
    """What a part adds to a message."""
    if isinstance(part, Thought):
        return _thought(part.text)
    if isinstance(part, Said):
        return {"content": part.text}
    if isinstance(part, Argued):
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    function = {"name": part.name, "arguments": ""}
    return {"tool_calls": [{"index": part.index, "id": new_id("call"), "type": "function", "function": function}]}


def _thought(text: str) -> dict[str, str]:
    """Thinking under both names that clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _whole(
    request: ChatRequest, head: Head, tokenizer: Tokenizer, readers: Sequence[PartReader], results: Sequence[Result]
) -> dict[str, Any]:
    choices = []
    for index, (result, reader) in enumerate(zip(results, readers, strict=True)):
        parts = reader.whole(result.text)
        content = "".join(part.text for part in parts if isinstance(part, Said))
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if thought:
            message |= _thought(thought)
        if reader.num_calls:
            message |= {"content": content or None, "tool_calls": _calls(parts)}
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": of_chat(tokenizer, result.token_ids, result.logprobs) if request.logprobs else None,
            "finish_reason": _reason(result, reader),
            "stretto": about(result),
        }
        if request.return_token_ids:
            choice["token_ids"] = result.token_ids
        choices.append(choice)
    reply = {**head.fields, "choices": choices, "usage": usage([results])}
    if len(results) == 1:
        reply["timings"] = timings(results[0])
    if request.return_token_ids:
        reply["prompt_token_ids"] = results[0].prompt_token_ids
    return reply


class _Stream:
    """The chunks of a streamed answer: first the role, then text as it becomes certain, then the reason of the end."""

    def __init__(
        self,
        request: ChatRequest,
        head: Head,
        tokenizer: Tokenizer,
        readers: Sequence[PartReader],
        prompt_ids: Sequence[int],
    ) -> None:
        self._request, self._head, self._tokenizer, self._readers = request, head, tokenizer, readers
        self._prompt_ids = prompt_ids
        skip_special = request.skip_special_tokens is not False
        self._origins = [Origins(tokenizer, skip_special=skip_special) for _ in readers]
        self._has_begun = [False] * len(readers)
        self._results: list[Result] = []

    def events(self, number: int, chunk: Chunk) -> list[Any]:
        """The chunks that one chunk of the engine becomes."""
        found, reader = [], self._readers[number]
        if not self._has_begun[number]:
            self._has_begun[number] = True
            extra = {"prompt_token_ids": self._prompt_ids} if self._request.return_token_ids else {}
            found.append(self._chunk(number, {"role": "assistant", "content": ""}, extra=extra))
        deltas = [_delta(part) for part in reader.read(chunk)]
        beside = self._beside(number, chunk)
        if not deltas and beside:
            deltas = [{"content": ""}]
        for i, delta in enumerate(deltas):  # what belongs to the tokens goes with the first of their pieces
            found.append(self._chunk(number, delta, **(beside if i == 0 else {})))
        if chunk.result is not None:
            self._results.append(chunk.result)
            ending = {"finish_reason": _reason(chunk.result, reader), "stretto": about(chunk.result)}
            found.append(self._chunk(number, {}, **ending, extra={"timings": timings(chunk.result)}))
        return found

    def last(self) -> list[Any]:
        """The counts, if they were asked for."""
        if not wants_usage(self._request):
            return []
        return [{**self._head.fields, "choices": [], "usage": usage([self._results])}]

    def _beside(self, number: int, chunk: Chunk) -> dict[str, Any]:
        found, ids = drafted(chunk), chunk.token_ids
        if self._request.return_steps and ids:
            found["stretto"] = self._origins[number].of(chunk)
        if self._request.logprobs and ids:
            found["logprobs"] = of_chat(self._tokenizer, ids, chunk.logprobs)
        if self._request.return_token_ids and ids:
            found["token_ids"] = ids
        return found

    def _chunk(
        self, number: int, delta: dict[str, Any], *, extra: Mapping[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
        unknown = {"usage": None} if wants_usage(self._request) else {}
        return {**self._head.fields, "choices": [choice], **unknown, **(extra or {})}
