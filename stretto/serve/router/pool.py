"""`Pool`: the replicas of a server, and what each of them has to do."""

import asyncio
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stretto.serve.errors import ApiError, loading
from stretto.serve.router.policy import Ask, Load, RoutePolicy
from stretto.serve.router.replica import Launch, Replica


class Pool:
    """`count` replicas. Their sockets lie in a folder that only this user may open."""

    def __init__(self, launch: Launch, count: int, policy: RoutePolicy) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="stretto-"))
        self.replicas = [Replica(n, self._folder / str(n), launch, policy.lost) for n in range(count)]
        self._policy = policy
        self.work, self._turns, self._turn = [0] * count, [0] * count, 0
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> list[Replica]:
        """Those that take work."""
        return [one for one in self.replicas if one.is_ready]

    async def start(self) -> None:
        """Start all of them; returns when all are ready. Raises UserError if one cannot be started."""
        self._keepers = [asyncio.ensure_future(one.keep()) for one in self.replicas]
        started = asyncio.ensure_future(self._all_ready())
        try:
            done, _ = await asyncio.wait([started, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            started.cancel()

    async def _all_ready(self) -> None:
        for one in self.replicas:
            await one.was_ready.wait()

    async def close(self) -> None:
        """End all of them. Again is fine."""
        await asyncio.gather(*(one.close() for one in self.replicas))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def named(self, text: str | None) -> Replica:
        """The replica of this number, else the first one that takes work. Raises ApiError."""
        if text is None:
            return self._offered(())[0]
        if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) < len(self.replicas)):
            raise ApiError(404, f"There is no replica {text!r}", param="replica", code="replica_not_found")
        if not (one := self.replicas[int(text)]).is_ready:
            raise loading()
        return one

    @contextmanager
    def chosen(self, ask: Ask, without: Collection[int] = ()) -> Iterator[Replica]:
        """The replica for a request, which counts as its work until the end of the block. Raises ApiError if none takes
        work."""
        loads = [Load(one.number, self.work[one.number], self._turns[one.number]) for one in self._offered(without)]
        number = self._policy.choose(ask, loads)
        cost = self._policy.unread(ask, number) + ask.output
        self._policy.sent(ask, number)
        self._turn += 1
        self._turns[number] = self._turn
        self.work[number] += cost
        try:
            yield self.replicas[number]
        finally:
            self.work[number] -= cost

    def has_other(self, without: Collection[int]) -> bool:
        """Whether another one takes work."""
        return any(one.number not in without for one in self.ready)

    def _offered(self, without: Collection[int]) -> list[Replica]:
        if not (found := [one for one in self.ready if one.number not in without]):
            raise loading()
        return found
