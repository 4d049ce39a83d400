"""A conversation of a request through the model's template, off the event loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stretto.core.errors import UserError
from stretto.llm.asynchronous import AsyncLLM
from stretto.serve.errors import of_problem
from stretto.serve.fits import check_text
from stretto.serve.schema import Messages, plain
from stretto.serve.service import Service
from stretto.text.chat import KWARGS, chat_ids


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages, tools and kwargs as `ChatTemplate.render` takes them."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None
    kwargs: Mapping[str, Any] | None = None
    is_ready: bool = True  # the assistant's turn begins


async def encode_chat(service: Service, llm: AsyncLLM, one: Conversation) -> list[int]:
    """Its token ids. Raises ApiError."""
    _check(service, one)
    model, messages = llm.llm, _readable(one.messages, llm)

    def encode() -> list[int]:
        return chat_ids(
            model.tokenizer, model.template, messages, tools=one.tools, kwargs=one.kwargs,
            add_generation_prompt=one.is_ready,
        )  # fmt: skip

    try:
        return await llm.offload(encode)
    except UserError as problem:
        raise of_problem(problem, "messages") or problem from None


async def render_chat(service: Service, llm: AsyncLLM, one: Conversation) -> str:
    """The text that the model reads. Raises ApiError."""
    _check(service, one)
    template, messages = llm.llm.template, _readable(one.messages, llm)
    try:
        if template is None:
            raise UserError("this model has no chat template")
        return await llm.offload(
            lambda: template.render(messages, tools=one.tools, kwargs=one.kwargs, add_generation_prompt=one.is_ready)
        )
    except UserError as problem:
        raise of_problem(problem, "messages") or problem from None


def _readable(messages: Messages, llm: AsyncLLM) -> list[dict[str, Any]]:
    """The messages for the template. OpenAI's newer name for the system is the role `developer`; a template that does
    not know it is given the older one."""
    found: list[dict[str, Any]] = plain(messages)
    if llm.llm.template is not None and "developer" not in llm.llm.template.source:
        for message in found:
            if message["role"] == "developer":
                message["role"] = "system"
    return found


def _check(service: Service, one: Conversation) -> None:
    """Raise ApiError for more text than the context could hold, and for names that no template is handed."""
    texts = [m.content if isinstance(m.content, str) else str(m.content or "") for m in one.messages]
    check_text(service, texts, "messages")
    for name in one.kwargs or {}:
        if name not in KWARGS:
            problem = UserError(f"unknown chat template argument {name!r:.80}", why=f"taken are: {', '.join(KWARGS)}")
            raise of_problem(problem, "chat_template_kwargs") or problem
