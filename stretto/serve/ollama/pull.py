"""`/api/pull`: fetch a model into the cache of this machine, for whoever has the admin key.

Only aliases are taken, never paths or addresses, and one at a time. Fetching does not serve a model. If the client
leaves, the fetching goes on, and the next request finds what there is.
"""

from collections.abc import AsyncIterator
from pathlib import Path

from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from stretto.core.env import read_env
from stretto.core.errors import UserError
from stretto.hub import models
from stretto.hub.aliases import aliases
from stretto.serve.call import Call
from stretto.serve.errors import ApiError, invalid, said
from stretto.serve.json import Json
from stretto.serve.ollama.generate import line
from stretto.serve.ollama.schema import PullRequest
from stretto.serve.threads import in_thread


class Puller:
    """The route."""

    def __init__(self) -> None:
        self._is_busy = False

    async def __call__(self, call: Call, request: PullRequest) -> ASGIApp:
        name = request.model or request.name
        if name is None:
            raise invalid("model is missing", "model", "missing_required_parameter")
        name = name.removesuffix(":latest")
        if name not in aliases():
            raise ApiError(404, f"There is no model {name!r} to pull; `stretto list model` names them", param="model",
                           code="model_not_found")  # fmt: skip
        if request.stream is False:
            await self._pull(name)
            return Json({"status": "success"})
        return StreamingResponse(self._lines(name), media_type="application/x-ndjson")

    async def _lines(self, name: str) -> AsyncIterator[bytes]:
        yield line({"status": f"pulling {name}"})
        try:
            await self._pull(name)
        except ApiError as problem:
            yield line({"error": problem.message})
        else:
            yield line({"status": "success"})

    async def _pull(self, name: str) -> None:
        def pull() -> Path:
            try:
                return models.pull(name, env=read_env(), progress=False)
            finally:
                self._is_busy = False

        if self._is_busy:
            raise ApiError(429, "Another model is being pulled", code="busy", retry_after=10)
        self._is_busy = True
        try:
            await in_thread(pull)
        except UserError as problem:
            raise ApiError(502, said(problem), code="pull_failed") from None
