"""`Loader`: brings models into memory and out of it, one at a time, within the limits.

Where no idle model can make room, the one that was used least recently takes no new requests, and leaves when those it
has are over: new ones wait for their turn, so that no model keeps another one out for ever.
"""

import asyncio
import gc
from collections.abc import Callable, Sequence

from stretto.core.errors import UserError
from stretto.core.memory import return_free_memory, show_size
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.sync import LLM
from stretto.llm.tally import Tally
from stretto.serve.errors import ApiError, said
from stretto.serve.log import LOGGER
from stretto.serve.slot import Limits, Slot
from stretto.serve.threads import in_thread
from stretto.serve.watchdog import Watchdog

QUEUE_PER_CACHE = 8  # tokens that may wait, beside those that the cache holds: a bound of how long one waits


class Loader:
    """turn: held by whoever loads or unloads. clock: seconds."""

    def __init__(self, slots: Sequence[Slot], limits: Limits, clock: Callable[[], float]) -> None:
        self._slots, self._limits, self._clock = slots, limits, clock
        self.turn = asyncio.Lock()

    async def bring(self, slot: Slot) -> None:
        """Load a model for those who wait for it, who are admitted or hear why not."""
        name = slot.service.name
        try:
            async with self.turn:
                if all(waiter.done() for waiter in slot.waiters):
                    return
                await self._make_room(slot)
                self.open(slot, await in_thread(slot.load))
                slot.admit()
        except ApiError as problem:
            told = problem
            slot.refuse(lambda: told)
        except UserError as problem:
            LOGGER.error("a model could not be loaded", extra={"facts": {"model": name, "why": said(problem)}})
            why = said(problem).replace(slot.place, name) if slot.place else said(problem)
            slot.refuse(lambda: _not_loaded(name, why))
        except Exception:
            LOGGER.exception("a model could not be loaded", extra={"facts": {"model": name}})
            slot.refuse(lambda: _not_loaded(name, "the log of the server says why"))
        finally:
            slot.task = None
            if slot.waiters and slot.service.state != "draining":  # they came while the last ones before them left
                slot.task = asyncio.create_task(self.bring(slot))

    async def _make_room(self, slot: Slot) -> None:
        memory = self._limits.memory
        if memory is not None and slot.need > memory:
            why = f"it needs {show_size(slot.need)} of the {show_size(memory)} that all models may take"
            raise ApiError(503, f"The model {slot.service.name!r} does not fit: {why}", code="model_does_not_fit")
        while not self._fits(slot):
            loaded = sorted((one for one in self._slots if one.service.is_loaded), key=lambda one: one.used)
            victim = next((one for one in loaded if not one.held), loaded[0])
            victim.is_leaving = True
            try:
                if victim.held:
                    await victim.empty.wait()
                await self.release(victim)
            finally:
                victim.is_leaving = False

    def _fits(self, slot: Slot) -> bool:
        loaded = [one.need for one in self._slots if one.service.is_loaded]
        memory, most = self._limits.memory, self._limits.most
        return (memory is None or sum(loaded) + slot.need <= memory) and (most is None or len(loaded) < most)

    async def release(self, slot: Slot) -> None:
        """Unload a model that has no requests. In a `turn`."""
        await slot.service.release()
        _unwatch(slot)
        gc.collect()  # cycles hold weights; all threads wait for it, longer where torch was imported
        await in_thread(return_free_memory)
        slot.keep = self._limits.idle
        LOGGER.info("model unloaded", extra={"facts": {"model": slot.service.name}})

    def open(self, slot: Slot, llm: LLM) -> None:
        """A model has been made."""
        limits = self._limits
        most = limits.max_queued_tokens or QUEUE_PER_CACHE * cache_tokens(llm)
        several = AsyncLLM(llm, max_waiting=limits.max_waiting, max_queued_tokens=most)
        slot.service.open(several)
        slot.watchdog = Watchdog(slot.service, several)
        slot.watchdog.start()
        slot.used = self._clock()
        LOGGER.info("model loaded", extra={"facts": {"model": slot.service.name, "seconds": round(llm.load_s, 2)}})

    async def close(self) -> None:
        """End every model, at once. Again is fine."""
        await asyncio.gather(*(slot.service.close() for slot in self._slots))
        for slot in self._slots:
            _unwatch(slot)


def cache_tokens(llm: LLM) -> int:
    """Tokens that its pages hold; of a model that needs none, as many as its sequences may have."""
    sizes = llm.engine.runner.sizes
    return Tally().counts(llm.engine).cache_tokens or sizes.max_seqs * sizes.context


def _unwatch(slot: Slot) -> None:
    """To the end, which waits for the engine, it was watched."""
    watchdog, slot.watchdog = slot.watchdog, None
    if watchdog is not None:
        watchdog.end()


def _not_loaded(name: str, why: str) -> ApiError:
    return ApiError(503, f"The model {name!r} could not be loaded: {why}", code="model_not_loaded", retry_after=10)
