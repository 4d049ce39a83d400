"""How a server lives: it answers while the model loads, serves, drains, and ends.

The first SIGTERM or Ctrl-C drains: new work is refused, what runs may finish, for a while. The second one ends it all.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from stretto.llm.sync import LLM
from stretto.serve.models import Models
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


class Lifecycle:
    """One run of a server. drain_timeout: seconds for what runs when the end begins."""

    def __init__(self, models: Models, server: Server, listening: socket, *, drain_timeout: float) -> None:
        self._models, self._server, self._socket = models, server, listening
        self._drain_timeout = drain_timeout
        self._ending, self._ending_now = asyncio.Event(), asyncio.Event()
        self._signal = 0

    def end(self, number: int = 0) -> None:
        """Drain; called again: end at once. number: of the signal that asked for it. In the server's event loop."""
        if self._ending.is_set():
            self._ending_now.set()
        self._signal = self._signal or number
        self._ending.set()

    async def run(self, ready: Callable[[LLM], None], *, signals: bool = True) -> int:
        """Serve until a signal, or `end`, and return the number of the signal.

        The first model is loaded while the server answers that it loads; what that raises ends the server and is
        raised. ready: called with the model.
        """
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        ending = asyncio.ensure_future(self._ending.wait())
        watching = asyncio.ensure_future(self._models.watch())
        try:
            with self._signals(signals):
                loading = asyncio.ensure_future(self._start(ready))
                events: set[asyncio.Future[Any]] = {serving, ending, loading}
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
                if loading.done():
                    loading.result()
                    await asyncio.wait(events - {loading}, return_when=asyncio.FIRST_COMPLETED)
                else:
                    loading.cancel()
                if serving.done():
                    serving.result()
                await self._drain()
                await self._end(serving)
        finally:
            ending.cancel()
            watching.cancel()
            await self._end(serving)
        return self._signal

    async def _start(self, ready: Callable[[LLM], None]) -> None:
        ready(await self._models.start())

    async def _end(self, serving: "asyncio.Future[None]") -> None:
        """Again is fine."""
        await self._models.close()
        self._server.should_exit = True
        await serving

    async def _drain(self) -> None:
        self._models.drain()
        until = asyncio.get_running_loop().time() + self._drain_timeout
        while self._models.num_calls and not self._ending_now.is_set():
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
