"""`/v1/embeddings`: texts as vectors of unit length. Each is a request that ends when its text is read."""

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp

from stretto.core.errors import UserError
from stretto.llm.embeddings import Embeddings
from stretto.serve.call import Call
from stretto.serve.errors import invalid, of_problem
from stretto.serve.json import Json
from stretto.serve.prompts import encode_text, prompts_of
from stretto.serve.reading import Reading
from stretto.serve.reply import new_id
from stretto.serve.schema import EmbeddingRequest


async def embeddings(call: Call, request: EmbeddingRequest) -> ASGIApp:
    """A vector for every input, in order."""
    texts = prompts_of(request.input, "input")
    found = await embed(call, request.model, texts, "input", request.dimensions, timeout=request.timeout)
    pack = _base64 if request.encoding_format == "base64" else numbers
    data = [{"object": "embedding", "index": i, "embedding": pack(vector)} for i, vector in enumerate(found.vectors)]
    tokens, cached = found.usage.prompt_tokens, found.usage.cached_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}
    return Json({"object": "list", "data": data, "model": call.service.shown(request.model), "usage": usage})


async def embed(
    call: Call,
    model: str | None,
    texts: Sequence[str | list[int]],
    param: str,
    dimensions: int | None = None,
    *,
    timeout: float | None = None,
) -> Embeddings:
    """Read all texts, batched with whatever else runs. param: the field they stand in; timeout: see `Reading`. Raises
    ApiError."""
    llm = call.service.model(model)
    embedder = llm.llm.embedder
    if not all(texts):
        raise invalid(f"{param}: there is no text to embed", param)
    ids = [await encode_text(call.service, llm, text, param=param, encode=embedder.encode, room=0) for text in texts]
    try:
        submissions = embedder.submissions(
            ids, dimensions, tenant=call.tenant, space=call.space(None), lora=call.service.lora(model)
        )
    except UserError as problem:
        raise of_problem(problem, "dimensions") or problem from None
    with Reading(call, llm, submissions, reply_id=new_id("embd", "-"), timeout=timeout) as reading:
        return Embeddings.of(await reading.results(), dimensions)


def numbers(vector: Sequence[float]) -> list[float]:
    """Rounded to fp32: the numbers that base64 has, too."""
    found: list[Any] = array("f", vector).tolist()
    return found


def _base64(vector: Sequence[float]) -> str:
    """fp32, little-endian."""
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
