"""`/admin/lora/load` and `/admin/lora/unload`: adapters come and go while the server runs, for the admin key alone.

A client names a file or folder in the folder that the operator named (`--lora-dir`), never a path. An adapter is a
model to clients: `"model": "NAME"`. It belongs to one model, the first one if the request names none.
"""

from pathlib import Path

from msgspec import Struct
from starlette.types import ASGIApp

from stretto.core.errors import UserError
from stretto.serve.call import Call
from stretto.serve.errors import ApiError, invalid, said
from stretto.serve.json import Json
from stretto.serve.log import LOGGER, short
from stretto.serve.schema import Name


class LoadLora(Struct, kw_only=True, frozen=True):
    """name: for clients; file: in `--lora-dir`; model: whose adapter it is."""

    name: Name
    file: Name
    model: Name | None = None


class UnloadLora(Struct, kw_only=True, frozen=True):
    """name: of an adapter that is loaded; model: whose it is."""

    name: Name
    model: Name | None = None


async def load(call: Call, request: LoadLora) -> ASGIApp:
    """Load an adapter, in place of one of the same name; requests that run with that one finish with it."""
    service, name = call.service, request.name
    loras = service.model(None).loras
    others = (other for one in call.models.services if one is not service for other in one.names)
    if name in service.config.names or name in others:
        raise invalid(f"name: {name!r} is another model", "name")
    if not name.isprintable() or name != name.strip():
        raise invalid("name: printable characters, without spaces around", "name")
    path = _in_folder(service.config.lora_dir, request.file)
    try:
        await loras.load(name, path)
    except UserError as problem:
        raise invalid(said(problem), "file", "lora_not_loaded") from None
    LOGGER.info("adapter loaded", extra={"facts": {"id": call.id, "name": short(name), "file": short(path.name)}})
    return Json({"id": name, "object": "lora.loaded", "parent": service.name})


async def unload(call: Call, request: UnloadLora) -> ASGIApp:
    """Forget an adapter: new requests find it no more, those that run with it finish."""
    name = request.name
    try:
        running = await call.service.model(None).loras.unload(name)
    except UserError:
        raise ApiError(404, f"There is no adapter {name!r} here", param="name", code="model_not_found") from None
    LOGGER.info("adapter unloaded", extra={"facts": {"id": call.id, "name": short(name), "running": running}})
    return Json({"id": name, "object": "lora.unloaded", "running": running})


def _in_folder(folder: Path | None, file: str) -> Path:
    """What `file` names in the operator's folder. Raises ApiError for anything that is no plain name there."""
    if folder is None:
        raise ApiError(403, "This server was started without --lora-dir", code="no_lora_dir")
    if file.startswith(".") or any(c in "/\\" or not c.isprintable() for c in file):
        raise invalid("file: the name of a file or folder in --lora-dir, no path", "file")
    path = folder / file
    if not path.exists():
        raise ApiError(404, f"There is no {file!r} in --lora-dir", param="file", code="file_not_found")
    return path
