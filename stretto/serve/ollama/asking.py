"""Ollama's fields in the form of `/v1/chat/completions`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from stretto.serve.asking import Asked, ask, thinking_kwargs
from stretto.serve.body import invalid_value
from stretto.serve.call import Call
from stretto.serve.constraint import Place, constrain
from stretto.serve.errors import ApiError, invalid
from stretto.serve.models import LATEST
from stretto.serve.ollama.schema import MACHINE, NEUTRAL, Generating, OllamaChat, OllamaGenerate, Options, Turn
from stretto.serve.prompts import encode_text
from stretto.serve.refusals import refuse_unsupported
from stretto.serve.sampling import sampling_of
from stretto.serve.schema import ChatRequest, Message
from stretto.serve.service import Service

_NAMES = {
    "max_completion_tokens": "options.num_predict",
    "response_format": "format",
    "repetition_penalty": "options.repeat_penalty",
    "chat_template_kwargs": "think",
    "reasoning_effort": "think",
    "stop": "options.stop",
}
_REFUSED = {
    "logprobs": "log-probabilities are given by /v1/chat/completions",
    "top_logprobs": "log-probabilities are given by /v1/chat/completions",
    "suffix": "text cannot be inserted before a suffix",
    "images": "this model reads text only",
    "template": "a template comes with the model, never with a request",
    "context": "a conversation is sent whole, to /api/chat",
}


def check_model(service: Service, name: str) -> str:
    """The name of the model as this server has it: Ollama's clients add a tag. Raises ApiError."""
    bare = name.removesuffix(LATEST)
    known = name if name in service.names else bare
    service.model(known)
    return known


async def ask_chat(call: Call, request: OllamaChat) -> Asked:
    """What `/api/chat` asks for."""
    messages = [_message(turn, i) for i, turn in enumerate(request.messages or ())]
    return await _ask(call, request, messages, request.tools)


async def ask_generate(call: Call, request: OllamaGenerate) -> Asked:
    """What `/api/generate` asks for."""
    prompt = request.prompt or ""
    if not request.raw:
        system = [Message(role="system", content=request.system)] if request.system else []
        return await _ask(call, request, [*system, Message(role="user", content=prompt)], None)
    if request.system:
        raise invalid("system: a raw prompt is continued as it stands", "system", "unsupported")
    chat = _as_chat(call, request, [], None)
    refuse_unsupported(chat, order=call.service.order)
    llm = call.service.model(chat.model)
    ids = await encode_text(call.service, llm, prompt)
    sampling = sampling_of(chat, max_tokens=chat.max_completion_tokens, logprobs=None)
    try:
        constraint = await constrain(call, llm, chat, Place(llm.llm.tokenizer), 1)
    except ApiError as problem:
        raise problem.renamed(_NAMES) from None
    return Asked.of_text(llm, ids, sampling, constraint, call, chat.model)


def options_of(call: Call, given: dict[str, Any] | None) -> Options:
    """The options, checked. Raises ApiError."""
    given = given or {}
    unknown = sorted(given.keys() - set(Options.__struct_fields__) - MACHINE)
    if unknown and call.service.config.strict:
        raise invalid(f"Unknown options: {', '.join(unknown[:16])}", f"options.{unknown[0]}", "unknown_field")
    call.note_skipped("unknown options are ignored", unknown, "options")
    try:
        options = msgspec.convert(given, Options)
    except msgspec.ValidationError as problem:
        raise invalid_value(str(problem), "options") from None
    for name, neutral in NEUTRAL.items():
        if getattr(options, name) not in (None, neutral):
            raise invalid(f"options.{name}: it is not supported here", f"options.{name}", "unsupported")
    if options.num_ctx is not None and options.num_ctx > call.service.context:
        call.note_skipped("the context is what the server was started with", ["num_ctx"], "options")
    return options


async def _ask(
    call: Call, request: Generating, messages: Sequence[Message], tools: list[dict[str, Any]] | None
) -> Asked:
    return await ask(call, _as_chat(call, request, messages, tools), _NAMES)


def _as_chat(
    call: Call, request: Generating, messages: Sequence[Message], tools: list[dict[str, Any]] | None
) -> ChatRequest:
    for name, why in _REFUSED.items():
        if getattr(request, name, None):
            raise invalid(f"{name}: {why}", name, "unsupported")
    options = options_of(call, request.options)
    think = request.think
    if think and call.service.tags is None:
        raise invalid(f"think: {request.model} does not think", "think", "unsupported")
    return ChatRequest(
        model=check_model(call.service, request.model),
        messages=list(messages),
        tools=tools or None,
        max_completion_tokens=options.num_predict if (options.num_predict or 0) > 0 else None,
        response_format=_format(request.format),
        reasoning_effort=think if isinstance(think, str) else None,
        chat_template_kwargs=None if think is None else thinking_kwargs(bool(think)),
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
    )


def _format(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}
    if given in (None, ""):
        return None
    if given != "json":
        raise invalid("format: json or a JSON schema", "format", "invalid_value")
    return {"type": "json_object"}


def _message(turn: Turn, i: int) -> Message:
    if turn.images:
        raise invalid(
            f"messages[{i}].images: this model reads text only", f"messages[{i}].images", "unsupported_content"
        )
    calls = [{"type": "function", **call} for call in turn.tool_calls or ()]
    return Message(
        role=turn.role,
        content=turn.content,
        reasoning=turn.thinking,
        tool_calls=calls or None,
        name=turn.tool_name,
        tool_call_id=turn.tool_call_id,
    )
