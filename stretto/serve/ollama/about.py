"""What Ollama's clients ask of a server before they ask it anything: version, models, what a model can do."""

from typing import Any

from starlette.types import ASGIApp, Scope

import stretto
from stretto.serve.call import Call
from stretto.serve.errors import invalid
from stretto.serve.json import Json
from stretto.serve.ollama.asking import check_model
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
    """The models there are."""
    return Json({"models": _models(call.service)})


async def running(call: Call, scope: Scope) -> ASGIApp:
    """The models that are loaded, which are the same."""
    service = call.service
    extra = {"expires_at": _NEVER, "context_length": service.context}
    return Json({"models": [one | extra for one in _models(service)]})


async def show(call: Call, request: ShowRequest) -> ASGIApp:
    """What a model is and can do."""
    service, name = call.service, request.model or request.name
    if name is None:
        raise invalid("model is missing", "model", "missing_required_parameter")
    check_model(service, name)
    template = service.llm.llm.template
    return Json({
        "modelfile": "",
        "parameters": "",
        "template": template.source if template is not None else "",
        "details": _DETAILS,
        "model_info": {"general.architecture": _ARCHITECTURE, f"{_ARCHITECTURE}.context_length": service.context},
        "capabilities": capabilities(service),
    })  # fmt: skip


def _models(service: Service) -> list[dict[str, Any]]:
    service.check_health()
    return [
        {
            "name": name,
            "model": name,
            "details": _DETAILS | {"parent_model": service.name if service.lora(name) else ""},
        }
        for name in service.names
    ]
