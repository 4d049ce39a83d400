"""`/admin/prefix/save` and `/admin/prefix/load`: what a text left in the cache, kept in a folder of this server.

Clients give names, never paths. A prefix belongs to a key and, if there is one, to its salt, as all that is cached: the
key is that of whoever asks, or the one that `tenant` names, as the log does (`key-2`). A file holds no owner.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import ASGIApp

from stretto.core.errors import FitError, RunError, UserError
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.submission import Submission
from stretto.serve.call import Call
from stretto.serve.conversation import Conversation, encode_chat
from stretto.serve.errors import ApiError, invalid, of_problem, said
from stretto.serve.fits import check_ids, check_text
from stretto.serve.json import Json
from stretto.serve.schema import LoadPrefixRequest, SavePrefixRequest
from stretto.serve.threads import in_thread

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


async def save(call: Call, request: SavePrefixRequest) -> ASGIApp:
    """Read a prompt, and write what texts that begin with it need not compute."""
    llm, path = call.service.model(request.model), _path(call, request.name)
    space = call.space(request.cache_salt, request.tenant)
    ids = await _encode(call, llm, request)
    check_ids(call.service, ids, "messages" if request.messages is not None else "prompt")
    prefixes = llm.llm.prefixes
    await _told(path, lambda: in_thread(prefixes.check))
    one = Submission(ids=ids, sampling=prefixes.sampling, continues=True, tenant=call.tenant, space=space, drafts=False)
    answers = llm.submit([one])
    try:
        while not answers.is_over:
            await answers.next()
    finally:
        answers.drop()
    prefix = await _told(path, lambda: call.service.ask(lambda _: prefixes.take(ids, space)))
    await _told(path, lambda: in_thread(lambda: prefixes.write(prefix, path)))
    return Json({"object": "prefix.saved", "name": request.name, "tokens": len(prefix.tokens)})


async def load(call: Call, request: LoadPrefixRequest) -> ASGIApp:
    """Put a prefix into the cache."""
    llm, path = call.service.model(request.model), _path(call, request.name)
    space = call.space(request.cache_salt, request.tenant)
    if not path.is_file():
        raise ApiError(404, f"There is no prefix {request.name!r} here", param="name", code="prefix_not_found")
    prefixes = llm.llm.prefixes
    prefix = await _told(path, lambda: in_thread(lambda: prefixes.read(path)))
    await _told(path, lambda: call.service.ask(lambda _: prefixes.leave(prefix, space)))
    return Json({"object": "prefix.loaded", "name": request.name, "tokens": len(prefix.tokens)})


def _path(call: Call, name: str) -> Path:
    folder = call.service.config.prefix_dir
    if folder is None:
        raise ApiError(403, "This server was started without --prefix-dir", code="no_prefix_dir")
    if not _NAME.fullmatch(name):
        raise invalid("name: letters, digits and _ . - are taken, up to 100, and no dot first", "name")
    return folder / f"{name}.safetensors"


async def _encode(call: Call, llm: AsyncLLM, request: SavePrefixRequest) -> list[int]:
    if (request.prompt is None) == (request.messages is None):
        raise invalid("Exactly one of prompt and messages is needed", "prompt")
    if request.messages is not None:
        is_ready = request.add_generation_prompt is not False
        one = Conversation(request.messages, request.tools, request.chat_template_kwargs, is_ready)
        return await encode_chat(call.service, llm, one)
    prompt: Any = request.prompt
    if isinstance(prompt, str):
        check_text(call.service, [prompt], "prompt")
        try:
            return await llm.offload(lambda: llm.llm.encode(prompt))
        except UserError as problem:
            raise of_problem(problem, "prompt") or problem from None
    return list(prompt)


async def _told(path: Path, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives. What goes wrong is told without the folder."""
    try:
        return await work()
    except UserError as problem:
        text = said(problem).replace(str(path), path.stem)
        if isinstance(problem, FitError):
            raise ApiError(503, text, code="no_room", retry_after=5) from None
        if isinstance(problem, RunError):
            raise ApiError(500, text, code="prefix_not_written") from None
        raise ApiError(400, text, param="name", code="prefix_refused") from None
