"""`/v1/chat/completions`: a conversation, answered whole or as it grows."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp

from stretto.llm.results import Chunk, Result
from stretto.llm.submission import Submission
from stretto.serve.call import Call
from stretto.serve.conversation import Conversation, encode_chat
from stretto.serve.json import Json
from stretto.serve.logprobs import of_chat
from stretto.serve.reading import Reading
from stretto.serve.reasoning import Part, Splitter, is_open
from stretto.serve.refusals import refuse_unsupported
from stretto.serve.reply import Head, drafted, wants_usage
from stretto.serve.sampling import sampling_of
from stretto.serve.schema import ChatRequest
from stretto.serve.stream import EventStream
from stretto.serve.usage import about, timings, usage
from stretto.text.tokenizer import Tokenizer

_TAIL = 64  # tokens at the end of a prompt in which a template may have opened the thinking


async def chat(call: Call, request: ChatRequest) -> ASGIApp:
    """Answer a conversation."""
    service = call.service
    llm = service.model(request.model)
    refuse_unsupported(request, order=service.order)
    conversation = Conversation(request.messages, _tools(request), _kwargs(request))
    ids = await encode_chat(service, llm, conversation)
    service.check_ids(ids, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = sampling_of(request, max_tokens=request.max_completion_tokens or request.max_tokens, logprobs=logprobs)
    submissions = [
        Submission(ids=ids, sampling=sampling, child=child, priority=-(request.priority or 0), tenant=call.tenant,
                   space=call.space(request.cache_salt), skip_special=request.skip_special_tokens is not False)
        for child in range(request.n or 1)
    ]  # fmt: skip
    params = sampling.resolve(llm.llm.hints) if request.echo_params else None
    kind = "chat.completion.chunk" if request.stream else "chat.completion"
    head = Head.make("chatcmpl", kind, service.name, llm.llm, params)
    begins_open = service.tags is not None and is_open(
        llm.llm.tokenizer.decode(ids[-_TAIL:], skip_special=False), service.tags
    )
    splitters = [Splitter(service.tags, begins_open) for _ in submissions]
    reading = Reading(call, llm, submissions, reply_id=head.id, timeout=request.timeout)
    if request.stream:
        grown = _Stream(request, head, llm.llm.tokenizer, splitters, ids)
        return EventStream(reading, call.id, grown.events, grown.last)
    with reading:
        results = await reading.results()
    return Json(_whole(request, head, llm.llm.tokenizer, splitters, results))


def _tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    return None if request.tool_choice == "none" else request.tools or None


def _kwargs(request: ChatRequest) -> dict[str, Any]:
    kwargs = dict(request.chat_template_kwargs or {})
    for name in ("reasoning_effort", "documents"):
        if (value := getattr(request, name)) is not None:
            kwargs.setdefault(name, value)
    return kwargs


def _thought(text: str) -> dict[str, str]:
    """Thinking under both names that clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _whole(
    request: ChatRequest, head: Head, tokenizer: Tokenizer, splitters: Sequence[Splitter], results: Sequence[Result]
) -> dict[str, Any]:
    choices = []
    for index, (result, splitter) in enumerate(zip(results, splitters, strict=True)):
        pieces: dict[Part, str] = {"reasoning": "", "content": ""}
        for part, text in (*splitter.push(result.text), *splitter.finish()):
            pieces[part] += text
        message: dict[str, Any] = {"role": "assistant", "content": pieces["content"], "refusal": None}
        if pieces["reasoning"]:
            message |= _thought(pieces["reasoning"])
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": of_chat(tokenizer, result.token_ids, result.logprobs) if request.logprobs else None,
            "finish_reason": result.finish_reason,
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
        splitters: Sequence[Splitter],
        prompt_ids: Sequence[int],
    ) -> None:
        self._request, self._head, self._tokenizer, self._splitters = request, head, tokenizer, splitters
        self._prompt_ids = prompt_ids
        self._has_begun = [False] * len(splitters)
        self._results: list[Result] = []

    def events(self, number: int, chunk: Chunk) -> list[Any]:
        """The chunks that one chunk of the engine becomes."""
        found, splitter = [], self._splitters[number]
        if not self._has_begun[number]:
            self._has_begun[number] = True
            extra = {"prompt_token_ids": self._prompt_ids} if self._request.return_token_ids else {}
            found.append(self._chunk(number, {"role": "assistant", "content": ""}, extra=extra))
        pieces = splitter.push(chunk.text) + (splitter.finish() if chunk.result is not None else [])
        deltas: list[dict[str, Any]] = [_thought(text) if part == "reasoning" else {"content": text}
                                        for part, text in pieces]  # fmt: skip
        beside = self._beside(chunk)
        if not deltas and beside:
            deltas = [{"content": ""}]
        for i, delta in enumerate(deltas):  # what belongs to the tokens goes with the first of their pieces
            found.append(self._chunk(number, delta, **(beside if i == 0 else {})))
        if chunk.result is not None:
            self._results.append(chunk.result)
            ending = {"finish_reason": chunk.result.finish_reason, "stretto": about(chunk.result)}
            found.append(self._chunk(number, {}, **ending, extra={"timings": timings(chunk.result)}))
        return found

    def last(self) -> list[Any]:
        """The counts, if they were asked for."""
        if not wants_usage(self._request):
            return []
        return [{**self._head.fields, "choices": [], "usage": usage([self._results])}]

    def _beside(self, chunk: Chunk) -> dict[str, Any]:
        found, ids = drafted(chunk), chunk.token_ids
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
