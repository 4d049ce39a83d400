"""`Frame`: around everything. Gives a request its id and its line in the log, and turns problems into answers."""

import re
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stretto.serve.errors import ApiError, fault, of_problem
from stretto.serve.log import LOGGER, Record
from stretto.serve.protocol import MAX_HEADER_BYTES
from stretto.serve.shapes import api_of, error_response

MAX_HEADERS = 100
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Frame:
    """The outermost application. An id that the client chose is kept if it is plain. rejected: hears why a request was
    refused."""

    def __init__(self, app: ASGIApp, rejected: Callable[[str], None]) -> None:
        self._app, self._rejected = app, rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = Record(given if _ID.fullmatch(given) else secrets.token_hex(12), scope["method"], scope["path"])
        scope.setdefault("state", {})["record"] = record
        scope["app"] = self  # a router that finds this raises its 404 and 405, and writes none of its own

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                names = [b"x-request-id", b"request-id"][: 1 + (api_of(record.path) == "anthropic")]
                found = [(name, record.id.encode()) for name in names]
                message = {**message, "headers": [*message["headers"], *found]}
            await send(message)

        try:
            # The parser's own bound holds only for headers that come in several pieces.
            size = sum(len(name) + len(value) for name, value in scope["headers"])
            if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
                raise ApiError(431, f"More than {MAX_HEADERS} header fields, or {MAX_HEADER_BYTES >> 10} KiB of them")
            await self._app(scope, receive, framed)
        except Exception as problem:
            await self._tell(problem, record, scope, receive, framed)
        finally:
            record.write()

    async def _tell(self, problem: Exception, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        known = of_problem(problem)
        if known is None:
            LOGGER.error("fault", exc_info=problem, extra={"facts": {"id": record.id}})
            known = fault(record.id)
        if record.status:  # the response has begun: closing the connection is all that is left to say
            return
        self._rejected("fault" if known.status == 500 else str(known.code or known.status))
        await error_response(record.path, known, record.id)(scope, receive, send)
