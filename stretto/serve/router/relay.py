"""From the response of a replica to that of the front process.

What has a length is sent when all of it has come, so that a replica that ends on the way leaves nothing behind and
another one can be asked. A stream is sent on event by event, never a part of one: if its replica ends, an event of the
API that was asked says so, and nothing follows.
"""

from starlette.types import Send

from stretto.serve.errors import ApiError
from stretto.serve.json import encode
from stretto.serve.router.exchange import Broken, Headers, Response
from stretto.serve.shapes import anthropic_error, api_of
from stretto.serve.stream import event, named_event

_OWN = frozenset({b"connection", b"transfer-encoding", b"keep-alive", b"date", b"x-request-id", b"request-id"})
"""Of one connection, or set again by `Frame`."""


def lost() -> ApiError:
    """A replica ended, and with it what it was answering."""
    return ApiError(503, "The replica that answered has ended; ask again", code="replica_lost", retry_after=1)


class Pieces:
    """Cuts a stream behind whole events. end: what an event ends with; empty = everything is whole."""

    def __init__(self, end: bytes) -> None:
        self._end, self.rest = end, b""

    def push(self, block: bytes) -> bytes:
        """What is complete with this block; the beginning of an event stays in `rest`."""
        if not self._end:
            return block
        block = self.rest + block
        cut = block.rfind(self._end)
        size = cut + len(self._end) if cut >= 0 else 0
        self.rest = block[size:]
        return block[:size]


async def relay(response: Response, send: Send, path: str, request_id: str) -> None:
    """Send it on. Raises Broken if the replica ends before anything was sent, or where no event can say so."""
    headers = [(name, value) for name, value in response.headers if name not in _OWN]
    if response.header(b"content-length") is not None:
        body = await response.body()
        await _begin(send, response.status, headers)
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return
    media_type = response.header(b"content-type") or b""
    is_lines = media_type.startswith(b"application/x-ndjson")
    is_events = media_type.startswith(b"text/event-stream")
    pieces, count = Pieces(b"\n" if is_lines else b"\n\n" if is_events else b""), 0
    await _begin(send, response.status, headers)
    try:
        async for block in response.blocks():
            if whole := pieces.push(block):
                count += whole.count(b"\ndata: ")
                await send({"type": "http.response.body", "body": whole, "more_body": True})
        end = pieces.rest
    except Broken:
        if not (is_lines or is_events):
            raise
        end = told(path, lost(), request_id, count)
    await send({"type": "http.response.body", "body": end, "more_body": False})


def told(path: str, problem: ApiError, request_id: str, count: int) -> bytes:
    """What ends a stream that fails, in the form of the API of `path`. count: named events before it."""
    api = api_of(path)
    if api == "anthropic":
        return named_event(anthropic_error(problem, request_id))
    if api == "ollama":
        return encode({"error": problem.message}) + b"\n"
    if path == "/v1/responses":
        about = {"code": problem.code, "message": problem.message, "param": None, "sequence_number": count}
        return named_event({"type": "error", **about})
    return event(problem.body)


async def _begin(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
