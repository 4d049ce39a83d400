"""`/admin/models/load` and `/admin/models/unload`: models in and out of memory, for whoever has the admin key."""

from starlette.types import ASGIApp

from stretto.serve.call import Call
from stretto.serve.json import Json
from stretto.serve.schema import ModelRequest


async def load(call: Call, request: ModelRequest) -> ASGIApp:
    """Load a model, unless it is, and others may be unloaded for it. The answer comes when it is there."""
    slot = call.models.find(request.model)
    slot.service.check_open()
    async with call.models.use(slot):
        return Json({"id": request.model, "object": "model.loaded"})


async def unload(call: Call, request: ModelRequest) -> ASGIApp:
    """Unload a model that has no requests; one that is not loaded stays so."""
    slot = call.models.find(request.model)
    slot.service.check_open()
    await call.models.unload(slot)
    return Json({"id": request.model, "object": "model.unloaded"})
