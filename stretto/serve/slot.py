"""`Slot`: the place of one model in a server, whether it is loaded or not, and `Limits`: what all may take."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from stretto.llm.sync import LLM
from stretto.serve.errors import ApiError
from stretto.serve.service import Service
from stretto.serve.watchdog import Watchdog

Status = Literal["loaded", "loading", "unloaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """memory: bytes of all models that are loaded; most: how many they are; idle: seconds without a request after which
    a model is unloaded; None = no limit. max_waiting, max_queued_tokens: of each model, as of `AsyncLLM`, but None =
    `QUEUE_PER_CACHE` times what its cache holds."""

    memory: int | None = None
    most: int | None = None
    idle: float | None = None
    max_waiting: int = 1024
    max_queued_tokens: int | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one model. load: makes it, in a thread; need: bytes of its weights and its cache; place: what of an
    error is no client's business, its path; held: requests that use it; keep: seconds that it stays after the last one,
    None = for ever; watchdog: of its engine, while it is loaded."""

    service: Service
    load: Callable[[], LLM]
    need: int = 0
    place: str = ""
    held: int = 0
    used: float = 0.0
    keep: float | None = None
    is_leaving: bool = False
    waiters: list["asyncio.Future[None]"] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None
    watchdog: Watchdog | None = None
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_open(self) -> bool:
        """Whether a new request may use it now."""
        return self.service.state == "ready" and not self.is_leaving

    @property
    def status(self) -> Status:
        """As clients are told."""
        if self.task is not None or self.service.state == "loading":
            return "loading"
        return "loaded" if self.service.is_loaded else "unloaded"

    def enter(self) -> None:
        """One more request uses it."""
        self.held += 1
        self.empty.clear()

    def leave(self, now: float) -> None:
        """One less."""
        self.held -= 1
        self.used = now
        if not self.held:
            self.empty.set()

    def admit(self) -> None:
        """It is loaded: all who wait use it."""
        for waiter in self._taken():
            self.enter()
            waiter.set_result(None)

    def refuse(self, problem: Callable[[], ApiError]) -> None:
        """All who wait hear why it is not loaded."""
        for waiter in self._taken():
            waiter.set_exception(problem())

    def _taken(self) -> Iterator["asyncio.Future[None]"]:
        waiters, self.waiters = self.waiters, []
        return (waiter for waiter in waiters if not waiter.done())
