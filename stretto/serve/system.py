"""What a server says of itself: health, models, metrics, version; and the cancelling of requests."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import stretto
from stretto.serve.call import Call
from stretto.serve.errors import ApiError
from stretto.serve.json import Json
from stretto.serve.service import Service

Answer = Callable[[Call, Scope], Awaitable[ASGIApp]]


class Plain:
    """An endpoint that reads no body."""

    def __init__(self, service: Service, answer: Answer) -> None:
        self._service, self._answer = service, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Call(self._service, scope["state"]["record"]), scope)
        await response(scope, receive, send)


async def health(call: Call, scope: Scope) -> ASGIApp:
    """Whether the model is there and its engine lives."""
    call.service.check_health()
    return Json({"status": "ok"})


async def ready(call: Call, scope: Scope) -> ASGIApp:
    """Whether new work is taken."""
    call.service.check_ready()
    return Json({"status": "ready"})


async def version(call: Call, scope: Scope) -> ASGIApp:
    """Of this package."""
    return Json({"version": stretto.__version__})


async def models(call: Call, scope: Scope) -> ASGIApp:
    """Every name of the model, in the lists that the clients of OpenAI, Anthropic and Ollama read. Codex, which says
    its version, wants a list of its own with prompts and tools for each model, and takes an empty one."""
    service = call.service
    cards = [model_card(service, name) for name in service.names]
    names = [
        {"name": one["id"], "model": one["id"], "capabilities": one["capabilities"], "details": {"format": ""}}
        for one in cards
    ]
    is_codex = b"client_version=" in scope["query_string"]
    page = {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
    return Json({"object": "list", "data": cards, "models": [] if is_codex else names, **page})


async def model(call: Call, scope: Scope) -> ASGIApp:
    """One of them."""
    service, name = call.service, scope["path_params"]["id"]
    if name not in service.names:
        raise ApiError(404, f"There is no model {name!r} here", param="model", code="model_not_found")
    return Json(model_card(service, name))


async def metrics(call: Call, scope: Scope) -> ASGIApp:
    """For Prometheus."""
    page = call.service.metrics.render(await call.service.measures())
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


async def cancel(call: Call, scope: Scope) -> ASGIApp:
    """End a request by the id of its answer or its `x-request-id`."""
    one = scope["path_params"]["id"]
    if not (count := call.service.live.cancel(call.tenant, one)):
        raise ApiError(404, "There is no such request, or it has ended", param="id", code="request_not_found")
    return Json({"id": one, "object": "request.cancelled", "cancelled": count})


def capabilities(service: Service) -> list[str]:
    """What the model can do, in the words of clients. Tools: calls are told from the text."""
    llm = service.llm.llm
    can = {
        "completion": True,
        "chat": llm.template is not None,
        "thinking": service.tags is not None,
        "tools": service.call_readers is not None,
        "structured_output": bool(llm.tokenizer.eos_ids),
    }
    return [name for name, holds in can.items() if holds]


def model_card(service: Service, name: str) -> dict[str, Any]:
    """What a model is and can do."""
    llm = service.llm.llm
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "created": service.created,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "stretto",
        "root": service.name,
        "parent": service.name if service.lora(name) else None,
        "max_model_len": service.context,
        "meta": {
            "n_vocab": llm.engine.runner.vocab_size,
            "n_ctx": service.context,
            "n_seq_max": llm.engine.runner.sizes.max_seqs,
            "backend": llm.backend_choice.name,
        },
        "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
        "capabilities": capabilities(service),
    }
