"""`/v1/completions`: texts that are continued as they stand, without a chat template."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp

from stretto.engine.request import TokenLogprobs
from stretto.llm.results import Chunk, Result
from stretto.llm.submission import Submission
from stretto.serve.call import Call
from stretto.serve.constraint import Place, constrain
from stretto.serve.json import Json
from stretto.serve.logprobs import of_completion
from stretto.serve.prompts import encode_text, prompts_of
from stretto.serve.reading import Reading
from stretto.serve.refusals import refuse_unsupported
from stretto.serve.reply import Head, drafted, wants_usage
from stretto.serve.sampling import sampling_of
from stretto.serve.schema import CompletionRequest
from stretto.serve.stream import EventStream
from stretto.serve.usage import about, timings, usage
from stretto.text.tokenizer import Tokenizer

_DEFAULT_TOKENS = 16  # as OpenAI's


async def complete(call: Call, request: CompletionRequest) -> ASGIApp:
    """Continue one prompt, or several."""
    service = call.service
    llm = service.model(request.model)
    refuse_unsupported(request, order=service.order)
    prompts = [await encode_text(service, llm, prompt) for prompt in prompts_of(request.prompt)]
    max_tokens = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    skip, n = request.skip_special_tokens is not False, request.n or 1
    sampling = sampling_of(request, max_tokens=max_tokens, logprobs=request.logprobs)
    constraint = await constrain(call, llm, request, Place(llm.llm.tokenizer), len(prompts) * n)
    of_prompt = request.logprobs if request.echo else None
    sampling = replace(sampling, grammar=constraint.grammar, prompt_logprobs=of_prompt)
    submissions = [
        Submission(ids=prompts[i // n], sampling=sampling, continues=True, child=i % n,
                   priority=-(request.priority or 0), tenant=call.tenant, space=call.space(request.cache_salt),
                   skip_special=skip, drafts=request.draft is not False, matcher=matcher,
                   lora=service.lora(request.model))
        for i, matcher in enumerate(constraint.matchers)
    ]  # fmt: skip
    params = sampling.resolve(llm.llm.hints) if request.echo_params else None
    head = Head.make("cmpl", "text_completion", service.shown(request.model), llm.llm, params)
    tokenizer = llm.llm.tokenizer
    echoes = [tokenizer.decode(ids, skip_special=skip) if request.echo else "" for ids in prompts]
    answers = [_Answer(request, tokenizer, echoes[i // n]) for i in range(len(submissions))]
    reading = Reading(call, llm, submissions, reply_id=head.id, timeout=request.timeout)
    if request.stream:
        grown = _Stream(request, head, answers)
        return EventStream(reading, call.id, grown.events, grown.last)
    with reading:
        results = await reading.results()
    choices = [one.whole(i, result) for i, (one, result) in enumerate(zip(answers, results, strict=True))]
    reply = {**head.fields, "choices": choices, "usage": usage(_by_prompt(results, n))}
    if len(results) == 1:
        reply["timings"] = timings(results[0])
    return Json(reply)


def _by_prompt(results: Sequence[Result], n: int) -> list[Sequence[Result]]:
    return [results[i : i + n] for i in range(0, len(results), n)]


class _Answer:
    """One choice while it grows. echo: the prompt, if it shall come first."""

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer, echo: str) -> None:
        self._request, self._tokenizer, self._echo = request, tokenizer, echo
        self._offset, self.has_begun = 0 if request.logprobs is not None else len(echo), False

    def whole(self, index: int, result: Result) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        ids: Sequence[int] = result.token_ids
        logprobs: Sequence[TokenLogprobs | None] = result.logprobs
        if self._echo and self._request.logprobs is not None:  # the first token follows nothing
            ids, logprobs = (*result.prompt_token_ids, *ids), (None, *result.prompt_logprobs, *logprobs)
        choice = self._choice(index, self._echo + result.text, ids, logprobs)
        choice |= {"finish_reason": result.finish_reason, "stretto": about(result)}
        if self._request.return_token_ids:
            choice |= {"token_ids": result.token_ids, "prompt_token_ids": result.prompt_token_ids}
        return choice

    def piece(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """The choice of one chunk."""
        text = chunk.text if self.has_begun else self._echo + chunk.text
        self.has_begun = True
        choice = self._choice(index, text, chunk.token_ids, chunk.logprobs) | drafted(chunk)
        if self._request.return_token_ids:
            choice["token_ids"] = chunk.token_ids
        if chunk.result is not None:
            choice |= {"finish_reason": chunk.result.finish_reason, "stretto": about(chunk.result)}
        return choice

    def _choice(self, index: int, text: str, ids: Sequence[int], logprobs: Sequence[Any]) -> dict[str, Any]:
        found = None
        if self._request.logprobs is not None:
            found, self._offset = of_completion(self._tokenizer, ids, logprobs, self._offset)
        return {"index": index, "text": text, "logprobs": found, "finish_reason": None}


class _Stream:
    """The chunks of a streamed answer."""

    def __init__(self, request: CompletionRequest, head: Head, answers: Sequence[_Answer]) -> None:
        self._request, self._head, self._answers = request, head, answers
        self._results: dict[int, Result] = {}

    def events(self, number: int, chunk: Chunk) -> list[Any]:
        """The chunk that one chunk of the engine becomes."""
        unknown = {"usage": None} if wants_usage(self._request) else {}
        extra: dict[str, Any] = {}
        if chunk.result is not None:
            self._results[number] = chunk.result
            extra["timings"] = timings(chunk.result)
        choice = self._answers[number].piece(number, chunk)
        if not (choice["text"] or choice["finish_reason"] or choice["logprobs"] or "token_ids" in choice):
            return []
        return [{**self._head.fields, "choices": [choice], **unknown, **extra}]

    def last(self) -> list[Any]:
        """The counts, if they were asked for."""
        if not wants_usage(self._request):
            return []
        results = [self._results[number] for number in sorted(self._results)]
        return [{**self._head.fields, "choices": [], "usage": usage(_by_prompt(results, self._request.n or 1))}]
