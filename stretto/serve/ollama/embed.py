"""`/api/embed`, and the older `/api/embeddings` for one text."""

import time

from starlette.types import ASGIApp

from stretto.serve.call import Call
from stretto.serve.embeddings import embed, numbers
from stretto.serve.json import Json
from stretto.serve.ollama.asking import check_model, options_of
from stretto.serve.ollama.schema import OllamaEmbed, OllamaEmbeddings
from stretto.serve.prompts import prompts_of


async def embed_texts(call: Call, request: OllamaEmbed) -> ASGIApp:
    """A vector for every input. A text that is too long is refused, whatever `truncate` says: nothing is cut here."""
    options_of(call, request.options)
    model = check_model(call.service, request.model)
    texts = prompts_of(request.input, "input")
    found = await embed(call, model, texts, "input", request.dimensions)
    return Json({
        "model": request.model,
        "embeddings": [numbers(vector) for vector in found.vectors],
        "total_duration": int(1e9 * (time.monotonic() - call.record.arrived)),
        "load_duration": 0,
        "prompt_eval_count": found.usage.prompt_tokens,
    })  # fmt: skip


async def embed_prompt(call: Call, request: OllamaEmbeddings) -> ASGIApp:
    """The vector of one text."""
    options_of(call, request.options)
    found = await embed(call, check_model(call.service, request.model), [request.prompt], "prompt")
    return Json({"embedding": numbers(found.vectors[0])})
