"""What a server says of itself: health, models, metrics, version; and the cancelling of requests."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import stretto
from stretto.serve.call import Call
from stretto.serve.errors import ApiError, model_not_found
from stretto.serve.json import Json
from stretto.serve.metrics import render
from stretto.serve.models import Models
from stretto.serve.service import Service
from stretto.serve.slot import Slot

Answer = Callable[[Call, Scope], Awaitable[ASGIApp]]


class Plain:
    """An endpoint that reads no body."""

    def __init__(self, models: Models, answer: Answer) -> None:
        self._models, self._answer = models, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = asked_for(self._models, QueryParams(scope["query_string"]).get("model"))
        response = await self._answer(Call(service, scope["state"]["record"], self._models), scope)
        await response(scope, receive, send)


def asked_for(models: Models, name: str | None) -> Service:
    """The model of `?model=`; without it the first one that is loaded, or else the first. Raises ApiError."""
    if name is not None:
        return models.find(name).service
    return next((service for service in models.services if service.is_loaded), models.first)


async def health(call: Call, scope: Scope) -> ASGIApp:
    """Whether the server has started and its engines live."""
    call.models.check_health()
    return Json({"status": "ok"})


async def ready(call: Call, scope: Scope) -> ASGIApp:
    """Whether new work is taken."""
    call.models.check_ready()
    return Json({"status": "ready"})


async def version(call: Call, scope: Scope) -> ASGIApp:
    """Of this package."""
    return Json({"version": stretto.__version__})


async def models(call: Call, scope: Scope) -> ASGIApp:
    """Every name of every model, in the lists that the clients of OpenAI, Anthropic and Ollama read. Codex, which says
    its version, wants a list of its own with prompts and tools for each model, and takes an empty one."""
    call.models.check_health()
    cards = [model_card(slot, name) for slot in call.models.slots for name in slot.service.names]
    names = [
        {"name": one["id"], "model": one["id"], "capabilities": one["capabilities"], "details": {"format": ""}}
        for one in cards
    ]
    is_codex = b"client_version=" in scope["query_string"]
    page = {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
    return Json({"object": "list", "data": cards, "models": [] if is_codex else names, **page})


async def model(call: Call, scope: Scope) -> ASGIApp:
    """One of them."""
    name = scope["path_params"]["id"]
    slot = call.models.find(name)
    if name not in slot.service.names:
        raise model_not_found(name)
    call.models.check_health()
    return Json(model_card(slot, name))


async def metrics(call: Call, scope: Scope) -> ASGIApp:
    """For Prometheus."""
    services = call.models.services
    found = await asyncio.gather(*(service.measures() for service in services))
    for service, measures in zip(services, found, strict=True):
        service.metrics.take(measures)
    page = render([service.metrics for service in services])
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


async def cancel(call: Call, scope: Scope) -> ASGIApp:
    """End a request by the id of its answer or its `x-request-id`."""
    one = scope["path_params"]["id"]
    if not (count := sum(service.live.cancel(call.tenant, one) for service in call.models.services)):
        raise ApiError(404, "There is no such request, or it has ended", param="id", code="request_not_found")
    return Json({"id": one, "object": "request.cancelled", "cancelled": count})


def capabilities(service: Service) -> list[str]:
    """What the model can do, in the words of clients. All that is known of one that was never loaded is that it is a
    model."""
    return list(service.about.capabilities) if service.about is not None else ["completion"]


def model_card(slot: Slot, name: str) -> dict[str, Any]:
    """What a model is and can do, and whether it is loaded."""
    service, about = slot.service, slot.service.about
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
        "status": {"value": slot.status},
        "max_model_len": about and about.context,
        "meta": about
        and {
            "n_vocab": about.vocab_size,
            "n_ctx": about.context,
            "n_seq_max": about.max_seqs,
            "backend": about.backend,
        },
        "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
        "capabilities": capabilities(service),
    }
