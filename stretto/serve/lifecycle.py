"""How a server lives: it answers while the model loads, serves, drains, and ends.

The first SIGTERM or Ctrl-C drains: new work is refused, what runs may finish, for a while. The second one ends it all.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from socket import socket
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from stretto.serve.protocol import MAX_HEADER_BYTES, limited

_LAST_WORDS = 5.0  # seconds for responses that are cut off to say so
_LOOK = 0.02  # seconds between two looks at what still runs


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to us."""

    def __init__(self, app: ASGIApp, *, max_connections: int = 512) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=limited(max_connections),
                ws="none",
                lifespan="off",
                loop="asyncio",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(_LAST_WORDS),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Served(Protocol):
    """What a server serves, as its life needs to know it."""

    @property
    def num_calls(self) -> int:
        """Requests that are being answered."""

    def drain(self) -> None:
        """Take no new work; what runs goes on."""

    async def close(self) -> None:
        """End everything, at once. Again is fine."""


class Lifecycle:
    """One run of a server. drain_timeout: seconds for what runs when the end begins."""

    def __init__(self, service: Served, server: Server, listening: socket, *, drain_timeout: float) -> None:
        self._service, self._server, self._socket = service, server, listening
        self._drain_timeout = drain_timeout
        self._ending, self._ending_now = asyncio.Event(), asyncio.Event()
        self._signal = 0

    def end(self, number: int = 0) -> None:
        """Drain; called again: end at once. number: of the signal that asked for it. In the server's event loop."""
        if self._ending.is_set():
            self._ending_now.set()
        self._signal = self._signal or number
        self._ending.set()

    async def run(self, start: Callable[[ExitStack], Awaitable[None]], *, signals: bool = True) -> int:
        """Serve until a signal, or `end`, and return the number of the signal.

        start: makes ready what is served, while the server answers that it loads; what it raises ends the server and is
        raised. What it enters is left when all is over.
        """
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            with self._signals(signals), ExitStack() as beside:
                loading = asyncio.ensure_future(start(beside))
                events: set[asyncio.Future[Any]] = {serving, ending, loading}
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
                if loading.done():
                    loading.result()
                    await asyncio.wait(events - {loading}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
                else:
                    loading.cancel()
                await self._drain()
                await self._end(serving)
        finally:
            ending.cancel()
            await self._end(serving)
        return self._signal

    async def _end(self, serving: "asyncio.Future[None]") -> None:
        """Again is fine."""
        await self._service.close()
        self._server.should_exit = True
        await serving

    async def _drain(self) -> None:
        self._service.drain()
        until = asyncio.get_running_loop().time() + self._drain_timeout
        while self._service.num_calls and not self._ending_now.is_set():
            if asyncio.get_running_loop().time() >= until:
                return
            await asyncio.sleep(_LOOK)

    @contextmanager
    def _signals(self, wanted: bool) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)} if wanted else {}
        for number in before:
            loop.add_signal_handler(number, self.end, int(number))
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
