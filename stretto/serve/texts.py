"""Text and token ids without a model: `/tokenize`, `/detokenize`, `/apply-template`."""

from typing import Any

from starlette.types import ASGIApp

from stretto.core.errors import UserError
from stretto.serve.call import Call
from stretto.serve.conversation import Conversation, encode_chat, render_chat
from stretto.serve.errors import invalid, of_problem
from stretto.serve.fits import check_text
from stretto.serve.json import Json
from stretto.serve.schema import DetokenizeRequest, TemplateRequest, TokenizeRequest


async def tokenize(call: Call, request: TokenizeRequest) -> ASGIApp:
    """Ids of a text, or of a conversation in the model's template. llama.cpp's clients expect no BOS unless they ask
    for it, vLLM's one unless they do not."""
    service, llm = call.service, call.service.model(request.model)
    given = [name for name in ("content", "prompt", "messages") if getattr(request, name) is not None]
    if len(given) != 1:
        raise invalid("Exactly one of content, prompt and messages is needed", given[-1] if given else "prompt")
    tokenizer, name = llm.llm.tokenizer, given[0]
    if request.messages is not None:
        is_ready = request.add_generation_prompt is not False
        conversation = Conversation(request.messages, request.tools, request.chat_template_kwargs, is_ready)
        ids = await encode_chat(service, llm, conversation)
    else:
        text = request.content if request.content is not None else request.prompt or ""
        check_text(service, [text], name)
        wanted = bool(request.add_special) if name == "content" else request.add_special_tokens is not False
        parse = request.parse_special is not False
        try:
            ids = await llm.offload(
                lambda: tokenizer.encode(text, add_bos=None if wanted else False, parse_special=parse)
            )
        except UserError as problem:
            raise of_problem(problem, name) or problem from None
    reply: dict[str, Any] = {"count": len(ids), "max_model_len": service.context, "tokens": ids}
    if request.with_pieces:
        reply["tokens"] = [{"id": i, "piece": _piece(tokenizer.token_bytes(i))} for i in ids]
    if request.return_token_strs:
        reply["token_strs"] = [tokenizer.token_text(i) for i in ids]
    return Json(reply)


async def detokenize(call: Call, request: DetokenizeRequest) -> ASGIApp:
    """Text of ids, special tokens spelled out."""
    llm = call.service.model(request.model)
    try:
        text = await llm.offload(lambda: llm.llm.tokenizer.decode(request.tokens, skip_special=False))
    except UserError as problem:
        raise of_problem(problem, "tokens") or problem from None
    return Json({"content": text, "prompt": text})


async def apply_template(call: Call, request: TemplateRequest) -> ASGIApp:
    """The text that a model would read."""
    llm = call.service.model(request.model)
    is_ready = request.add_generation_prompt is not False
    conversation = Conversation(request.messages, request.tools, request.chat_template_kwargs, is_ready)
    return Json({"prompt": await render_chat(call.service, llm, conversation)})


def _piece(spelled: bytes) -> str | list[int]:
    """Text; the bytes of what is none by itself, as llama.cpp has it."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return list(spelled)
