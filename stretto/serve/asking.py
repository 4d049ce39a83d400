"""From a conversation to requests of the engine: the one way there, whichever API it came by.

The routes of other APIs bring their bodies into the form of `/v1/chat/completions` first. `names` says what a field is
called where the client wrote it, so that a refusal names what the client knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.submission import Submission
from stretto.serve.call import Call
from stretto.serve.conversation import Conversation, encode_chat
from stretto.serve.errors import ApiError, of_problem
from stretto.serve.grammars import grammar_of, matchers_of, thinking_end
from stretto.serve.parts import PartReader
from stretto.serve.reading import Reading
from stretto.serve.reasoning import is_open
from stretto.serve.refusals import refuse_unsupported
from stretto.serve.sampling import sampling_of
from stretto.serve.schema import ChatRequest

_TAIL = 64  # tokens at the end of a prompt in which a template may have opened the thinking


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests that are ready to be queued. readers: of their answers, one each; timeout: as in `Reading`."""

    llm: AsyncLLM
    ids: list[int]
    sampling: Sampling
    submissions: list[Submission]
    readers: list[PartReader]
    timeout: float | None = None

    @staticmethod
    def of_text(llm: AsyncLLM, ids: list[int], sampling: Sampling, call: Call) -> "Asked":
        """A text that is continued as it stands: no conversation, so no thinking and no calls."""
        one = Submission(ids=ids, sampling=sampling, continues=True, tenant=call.tenant, space=call.space(None))
        return Asked(llm, ids, sampling, [one], [PartReader(None)])

    def reading(self, call: Call, reply_id: str) -> Reading:
        """Queue them. Raises as `Reading` does."""
        return Reading(call, self.llm, self.submissions, reply_id=reply_id, timeout=self.timeout)


async def ask(call: Call, request: ChatRequest, names: Mapping[str, str] | None = None) -> Asked:
    """Check and encode a conversation. Raises ApiError for what is wrong with it, under the names of the client."""
    try:
        return await _ask(call, request)
    except (ApiError, UserError) as problem:
        if names is None or (known := of_problem(problem, "messages")) is None:
            raise
        raise known.renamed(names) from None


def conversation_of(request: ChatRequest) -> Conversation:
    """What the template is given."""
    tools = None if request.tool_choice == "none" else request.tools or None
    kwargs: dict[str, Any] = dict(request.chat_template_kwargs or {})
    for name in ("reasoning_effort", "documents"):
        if (value := getattr(request, name)) is not None:
            kwargs.setdefault(name, value)
    return Conversation(request.messages, tools, kwargs)


def thinking_kwargs(wanted: bool) -> dict[str, bool]:
    """Thinking switched on or off, under both names that templates read."""
    return {"enable_thinking": wanted, "thinking": wanted}


async def _ask(call: Call, request: ChatRequest) -> Asked:
    service = call.service
    llm = service.model(request.model)
    refuse_unsupported(request, order=service.order)
    conversation = conversation_of(request)
    ids = await encode_chat(service, llm, conversation)
    service.check_ids(ids, "messages")
    tags, tokenizer, template = service.tags, llm.llm.tokenizer, llm.llm.template
    tail = tokenizer.decode(ids[-_TAIL:], skip_special=False)
    after = thinking_end(tail, tags, template.source if template else None)
    grammar = grammar_of(request, tokenizer, service.call_format, after=after)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = sampling_of(request, max_tokens=request.max_completion_tokens or request.max_tokens, logprobs=logprobs)
    sampling = replace(sampling, grammar=grammar)
    param = "tools" if conversation.tools else "response_format"
    matchers = await matchers_of(llm, sampling, request.n or 1, param)
    submissions = [
        Submission(ids=ids, sampling=sampling, matcher=matcher, child=child, priority=-(request.priority or 0),
                   tenant=call.tenant, space=call.space(request.cache_salt),
                   skip_special=request.skip_special_tokens is not False, drafts=request.draft is not False)
        for child, matcher in enumerate(matchers)
    ]  # fmt: skip
    begins_open = tags is not None and is_open(tail, tags)
    calls = service.call_readers if conversation.tools else None
    readers = [PartReader(tags, begins_open, calls and calls()) for _ in submissions]
    return Asked(llm, ids, sampling, submissions, readers, request.timeout)
