"""Connections: how many there may be, and how long one may take to say what it wants."""

import asyncio
import json
import socket
from http import HTTPStatus

from uvicorn.protocols.http.h11_impl import H11Protocol

from stretto.serve.errors import ApiError

MAX_HEADER_BYTES = 64 << 10


class Connection(H11Protocol):
    """HTTP/1.1 on one connection. Subclasses made by `limited` say how much is allowed."""

    most: int
    header_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so itself only for sockets that were made with the number of the protocol, and those of
        # `socket.create_server` were not: every response in two writes would wait 40 ms for the client's delayed ACK.
        sock = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.most:
            self._say(ApiError(503, f"There are {self.most} connections already", code=503, retry_after=1))
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._timer is None and self._is_idle:
            self._expect()
        super().data_received(data)
        if not self._is_idle:
            self._expect_nothing()

    def send_400_response(self, msg: str) -> None:
        self._say(ApiError(400, "This is no HTTP request, or its header is too large"))

    @property
    def _is_idle(self) -> bool:
        """Whether no request has been understood that is not answered yet."""
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        """A header must be complete in time."""
        self._timer = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self, problem: ApiError) -> None:
        """Answer without a request, and close. While a response is on its way, only close."""
        self._expect_nothing()
        if self._is_idle:
            body = json.dumps(problem.body).encode()
            fields = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                **problem.headers,
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            line = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            self.transport.write(f"{line}{head}\r\n".encode() + body)
        self.transport.close()


def limited(max_connections: int, header_seconds: float = 10.0) -> type[Connection]:
    """The class for a server with these limits; uvicorn makes an instance per connection."""
    return type("Limited", (Connection,), {"most": max_connections, "header_seconds": header_seconds})
