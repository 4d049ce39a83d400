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
from stretto.serve.constraint import Constraint, Place, budget_of, constrain
from stretto.serve.conversation import Conversation, encode_chat
from stretto.serve.errors import ApiError, invalid, of_problem
from stretto.serve.fits import check_ids
from stretto.serve.parts import PartReader
from stretto.serve.reading import Reading
from stretto.serve.reasoning import comes_first, is_open
from stretto.serve.refusals import refuse_unsupported
from stretto.serve.sampling import sampling_of
from stretto.serve.schema import ChatRequest
from stretto.serve.service import in_text

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
    def of_text(
        llm: AsyncLLM, ids: list[int], sampling: Sampling, constraint: Constraint, call: Call, model: str | None
    ) -> "Asked":
        """A text that is continued as it stands: no conversation, so no thinking and no calls. model: as asked for."""
        sampling = replace(sampling, grammar=constraint.grammar)
        one = Submission(ids=ids, sampling=sampling, continues=True, tenant=call.tenant, space=call.space(None),
                         matcher=constraint.matchers[0], lora=call.service.lora(model))  # fmt: skip
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
    for name in ("reasoning_effort", "thinking_budget", "documents"):
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
    check_ids(service, ids, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = sampling_of(request, max_tokens=request.max_completion_tokens or request.max_tokens, logprobs=logprobs)
    place = _place(call, llm, request, conversation, ids)
    constraint = await constrain(call, llm, request, place, request.n or 1)
    sampling = replace(sampling, grammar=constraint.grammar)
    submissions = [
        Submission(ids=ids, sampling=sampling, child=child, priority=-(request.priority or 0), tenant=call.tenant,
                   space=call.space(request.cache_salt), skip_special=request.skip_special_tokens is not False,
                   drafts=request.draft is not False, matcher=matcher, lora=service.lora(request.model))
        for child, matcher in enumerate(constraint.matchers)
    ]  # fmt: skip
    tags, after = service.tags, constraint.grammar.after if constraint.grammar is not None else None
    # What comes before a grammar that begins after the thinking is thinking, even if the opening tag is left out.
    begins_open = tags is not None and (after is not None or is_open(_tail(llm, ids), tags))
    calls = service.call_readers if conversation.tools else None
    readers = [PartReader(tags, begins_open, calls and calls()) for _ in submissions]
    return Asked(llm, ids, sampling, submissions, readers, request.timeout)


def _place(call: Call, llm: AsyncLLM, request: ChatRequest, conversation: Conversation, ids: list[int]) -> Place:
    """Where the answer to a prompt is written. Raises ApiError for a budget of thinking that cannot be told apart."""
    service, template, tokenizer = call.service, llm.llm.template, llm.llm.tokenizer
    tags = service.thinking
    if tags is not None and template is not None:
        if not comes_first(_tail(llm, ids), tags, template.source, conversation.kwargs or {}):
            tags = None
        elif budget_of(request) is not None and not in_text(tokenizer, tags):
            raise invalid("thinking_budget: the tags of the thinking are special tokens of this model, which cannot be"
                          " enforced yet", "thinking_budget", "unsupported")  # fmt: skip
    return Place(tokenizer, service.call_format, tags)


def _tail(llm: AsyncLLM, ids: list[int]) -> str:
    return llm.llm.tokenizer.decode(ids[-_TAIL:], skip_special=False)
