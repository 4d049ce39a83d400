"""`Models`: the models of one server. Each is loaded when it is asked for, and unloaded when another needs its room.

Loads come one after the other, in the order in which they were asked for, in threads of their own. Who waits for a
model is admitted with all others that wait for it, and from then on it stays until they have gone.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

from stretto.llm.sync import LLM
from stretto.serve.errors import ApiError, draining, loading, model_not_found
from stretto.serve.loader import Loader
from stretto.serve.service import Service
from stretto.serve.slot import Limits, Slot
from stretto.serve.threads import in_thread

LATEST = ":latest"  # Ollama's clients add it to names
_LOOK = 0.5  # seconds between two looks for models that nobody used


class Models:
    """All models, the first one for requests that name none, which `start` loads. clock: seconds."""

    def __init__(
        self,
        slots: Sequence[Slot],
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots, self.limits, self.clock = tuple(slots), limits or Limits(), clock
        self._loader = Loader(self.slots, self.limits, clock)
        for slot in self.slots:
            slot.keep = self.limits.idle
        for slot in self.slots[1:]:
            slot.service.state = "unloaded"

    @property
    def first(self) -> Service:
        """For requests that name no model."""
        return self.slots[0].service

    @property
    def services(self) -> list[Service]:
        """Of all models."""
        return [slot.service for slot in self.slots]

    @property
    def num_calls(self) -> int:
        """Requests that are being answered."""
        return sum(service.num_calls for service in self.services)

    def find(self, name: str | None) -> Slot:
        """The model of this name, or the one whose adapter has it. Raises ApiError."""
        for wanted in () if name is None else (name, name.removesuffix(LATEST)):
            for slot in self.slots:
                if wanted in slot.service.names:
                    return slot
        if name is None:
            return self.slots[0]
        raise model_not_found(name)

    @asynccontextmanager
    async def use(self, slot: Slot, keep: float | None = None) -> AsyncIterator[Service]:
        """Inside, the model is loaded and stays. keep: seconds that it stays afterwards, in place of what it was; not
        before the server has started. Raises ApiError if it cannot be loaded."""
        await self._enter(slot)
        if keep is not None:
            slot.keep = keep if keep < math.inf else None
        try:
            yield slot.service
        finally:
            slot.leave(self.clock())

    async def unload(self, slot: Slot) -> bool:
        """Let an idle model go; False if it is not there. Raises ApiError while it has requests."""
        async with self._loader.turn:
            if slot.held:
                raise ApiError(409, f"The model {slot.service.name!r} has requests", code="model_busy")
            if not slot.is_open:
                return False
            await self._loader.release(slot)
            return True

    async def expire(self) -> None:
        """Let the models go that nobody used for as long as they are kept."""
        async with self._loader.turn:
            for slot in self.slots:
                left = self.seconds_left(slot)
                if slot.is_open and not slot.held and left is not None and left <= 0:
                    await self._loader.release(slot)

    async def watch(self) -> None:
        """`expire`, again and again."""
        while True:
            await asyncio.sleep(_LOOK)
            await self.expire()

    def seconds_left(self, slot: Slot) -> float | None:
        """Until a model is unloaded if nobody asks for it; None = it stays."""
        if slot.keep is None:
            return None
        return slot.keep if slot.held else slot.used + slot.keep - self.clock()

    async def start(self, ready: Callable[[LLM], None], beside: ExitStack) -> None:
        """Load the first model, and let idle ones go until `beside` is left. ready: called with the model. Raises what
        loading it raises."""
        slot = self.slots[0]
        async with self._loader.turn:
            llm = await in_thread(slot.load)
            self._loader.open(slot, llm)
        ready(llm)
        beside.callback(asyncio.create_task(self.watch()).cancel)

    def check_health(self) -> None:
        """Raise ApiError unless the server has started and every engine lives."""
        if self.first.state == "loading":
            raise loading()
        for service in self.services:
            if service.is_loaded:
                service.check_health()

    def check_ready(self) -> None:
        """Raise ApiError unless new work is taken."""
        if self.first.state == "draining":
            raise draining()
        self.check_health()

    def drain(self) -> None:
        """Take no new work; what runs goes on, and who waits for a model is refused."""
        for slot in self.slots:
            slot.service.drain()
            if slot.task is not None:
                slot.task.cancel()
            slot.refuse(draining)

    async def close(self) -> None:
        """End everything, at once. Again is fine."""
        self.drain()
        await self._loader.close()

    async def _enter(self, slot: Slot) -> None:
        if slot.is_open:
            slot.enter()
            return
        waiter = asyncio.get_running_loop().create_future()
        slot.waiters.append(waiter)
        if slot.task is None:
            slot.task = asyncio.create_task(self._loader.bring(slot))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                slot.leave(self.clock())  # it was admitted in the moment in which its client left
            raise


def alone(service: Service) -> Models:
    """A house of one model that somebody else opens."""

    def load() -> LLM:
        raise AssertionError("it is opened by its owner, and stays")

    return Models([Slot(service, load)])
