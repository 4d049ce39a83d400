"""One request to a replica: HTTP/1.1 on a Unix socket, a connection of its own, closed at once if nobody reads on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import h11

from stretto.serve.protocol import MAX_HEADER_BYTES

Headers = Sequence[tuple[bytes, bytes]]
_READ = 64 << 10  # bytes at a time


class Broken(Exception):
    """The replica ended, or closed the connection, before its response was complete."""


class Response:
    """A response whose header has come. headers: names in small letters."""

    def __init__(self, http: h11.Connection, reader: asyncio.StreamReader, head: h11.Response) -> None:
        self._http, self._reader = http, reader
        self.status, self.headers = head.status_code, list(head.headers)

    def header(self, name: bytes) -> bytes | None:
        """The first value under a name."""
        return next((value for key, value in self.headers if key == name), None)

    async def blocks(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises Broken."""
        while not isinstance(event := await _event(self._http, self._reader), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def body(self) -> bytes:
        """All of it. Raises Broken."""
        return b"".join([block async for block in self.blocks()])


@asynccontextmanager
async def exchange(
    path: Path, method: str, target: bytes, headers: Headers, body: bytes = b""
) -> AsyncIterator[Response]:
    """Ask the server at the socket `path`. Leaving the block closes the connection, which ends the request there.
    Raises Broken."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * MAX_HEADER_BYTES)
    fields = [(b"host", b"localhost"), (b"connection", b"close"), *headers]
    if body or method == "POST":
        fields.append((b"content-length", str(len(body)).encode()))
    sent = http.send(h11.Request(method=method, target=target, headers=fields)) or b""
    sent += (http.send(h11.Data(body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as problem:
        raise Broken(str(problem)) from problem
    try:
        writer.write(sent)
        while not isinstance(head := await _event(http, reader), h11.Response):
            pass  # 100 Continue and the like
        yield Response(http, reader, head)
    finally:
        writer.transport.abort()


async def _event(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ))
    except (OSError, h11.RemoteProtocolError) as problem:
        raise Broken(str(problem)) from problem
    if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
        raise Broken("the connection was closed")
    assert not isinstance(event, type)
    return event
