"""`Replica`: one server process, kept alive.

It listens on a Unix socket of its own and prints a line when it is ready. Its standard input is a pipe of the front
process, on which nothing is ever written: when the front process ends, however, the pipe closes and the replica ends.
"""

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.core.errors import FitError, ModelFileError, RunError, UserError
from stretto.serve.log import LOGGER
from stretto.serve.router.exchange import Broken, exchange

LOOK = 1.0  # seconds between two questions for its health
STUCK = 15.0  # seconds without a good answer, after which a replica is replaced
PAUSES = (0.2, 30.0)  # seconds before a replica is started again, the first time and at most; each is twice the last
STEADY = 60.0  # seconds of life after which the pauses begin anew
LAST_WORDS = 10.0  # seconds that a replica has to end

_KINDS: Mapping[int, type[UserError]] = {2: UserError, 3: ModelFileError, 4: FitError}
"""By the exit codes of the command."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a replica is started. command: by the path of its socket; environ: of the process, with `key`, which opens
    it."""

    command: Callable[[Path], Sequence[str]]
    environ: Mapping[str, str]
    key: str


class Replica:
    """ended: is called when the process has ended by itself."""

    def __init__(self, number: int, path: Path, launch: Launch, ended: Callable[[int], None]) -> None:
        self.number, self.path, self.key = number, path, launch.key
        self.is_ready, self.restarts = False, 0
        self.was_ready = asyncio.Event()
        self.facts: dict[str, Any] = {}
        self._launch, self._ended = launch, ended
        self._process: Process | None = None
        self._is_closing = False

    async def keep(self) -> None:
        """Start the process, and again whenever it ends, until `close`. Raises UserError if the first one ends before
        it was ever ready: another one would, too."""
        loop = asyncio.get_running_loop()
        pause = PAUSES[0]
        while not self._is_closing:
            started = loop.time()
            code = await self._live()
            if self._is_closing:
                return
            if not self.was_ready.is_set():
                raise _KINDS.get(code, RunError)(
                    f"replica {self.number} ended with code {code} before it was ready", why="it says so above"
                )
            LOGGER.error("replica ended", extra={"facts": {"replica": self.number, "code": code}})
            self.restarts += 1
            self._ended(self.number)
            if loop.time() - started > STEADY:
                pause = PAUSES[0]
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSES[1])

    async def close(self) -> None:
        """End the process: politely, then not."""
        self._is_closing, self.is_ready = True, False
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), LAST_WORDS)

    async def _live(self) -> int:
        """One process, from its start to its end, and its exit code."""
        command = self._launch.command(self.path)
        # A session of its own: Ctrl-C in a terminal goes to the front process, which drains.
        process = await asyncio.create_subprocess_exec(
            *command, env=dict(self._launch.environ), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._process = process
        ended, watched = asyncio.ensure_future(process.wait()), asyncio.ensure_future(self._watch(process))
        try:
            await asyncio.wait({ended, watched}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_ready = False
            watched.cancel()
            await asyncio.gather(watched, return_exceptions=True)
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await ended
        return ended.result()

    async def _watch(self, process: Process) -> None:
        """Returns when the replica is to be replaced."""
        assert process.stdout is not None
        if not (line := await process.stdout.readline()):
            await process.wait()
            return
        self.facts, self.is_ready = json.loads(line), True
        self.was_ready.set()
        loop = asyncio.get_running_loop()
        healthy = loop.time()
        while loop.time() - healthy < STUCK:
            await asyncio.sleep(LOOK)
            if await self._is_healthy():
                healthy = loop.time()
        LOGGER.error("replica is stuck", extra={"facts": {"replica": self.number}})

    async def _is_healthy(self) -> bool:
        with suppress(Broken, TimeoutError):
            async with asyncio.timeout(STUCK), exchange(self.path, "GET", b"/health", []) as response:
                return response.status == 200
        return False
