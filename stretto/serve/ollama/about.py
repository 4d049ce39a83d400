"""What Ollama's clients ask of a server before they ask it anything: version, models, what a model can do."""

from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.types import ASGIApp, Scope

import stretto
from stretto.serve.call import Call
from stretto.serve.errors import invalid
from stretto.serve.json import Json
from stretto.serve.ollama.schema import ShowRequest
from stretto.serve.service import Service
from stretto.serve.system import capabilities

_DETAILS = {"parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "",
            "quantization_level": ""}  # fmt: skip
_NEVER = "9999-12-31T23:59:59Z"
_ARCHITECTURE = "stretto"  # the prefix under which clients look for the context


async def version(call: Call, scope: Scope) -> ASGIApp:
    """Of this package."""
    return Json({"version": stretto.__version__})


async def tags(call: Call, scope: Scope) -> ASGIApp:
    """The models there are, loaded or not."""
    call.models.check_health()
    return Json({"models": [_model(service, name) for service in call.models.services for name in service.names]})


async def running(call: Call, scope: Scope) -> ASGIApp:
    """The models that are loaded, and until when."""
    call.models.check_health()
    found = []
    for slot in call.models.slots:
        service, left = slot.service, call.models.seconds_left(slot)
        if service.is_loaded:
            extra = {"expires_at": _NEVER if left is None else _in_seconds(left), "context_length": service.context,
                     "size": slot.need, "size_vram": 0}  # fmt: skip
            found += [_model(service, name) | extra for name in service.names]
    return Json({"models": found})


async def show(call: Call, request: ShowRequest) -> ASGIApp:
    """What a model is and can do. Of one that was never loaded, little is known."""
    name = request.model or request.name
    if name is None:
        raise invalid("model is missing", "model", "missing_required_parameter")
    service = call.models.find(name).service
    service.check_open()
    about = service.about
    context = {f"{_ARCHITECTURE}.context_length": about.context} if about is not None else {}
    return Json({
        "modelfile": "",
        "parameters": "",
        "template": (about and about.template) or "",
        "details": _DETAILS,
        "model_info": {"general.architecture": _ARCHITECTURE, **context},
        "capabilities": capabilities(service),
    })  # fmt: skip


def _model(service: Service, name: str) -> dict[str, Any]:
    parent = {"parent_model": service.name if service.lora(name) else ""}
    return {"name": name, "model": name, "details": _DETAILS | parent}


def _in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=max(0.0, seconds))).isoformat().replace("+00:00", "Z")
