"""Models whose texts are known, and an event loop whose time passes only where somebody waits for it."""

import asyncio
import random
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from stretto.engine.request import TokenLogprobs
from stretto.solve.scripted import Scripted, Write

T = TypeVar("T")


def believed(ids: Sequence[int], place: int) -> TokenLogprobs:
    """Of every letter something else, wherever it stands."""
    logprob = -((ids[place] * 7) % 13 + 1) / 10
    return TokenLogprobs(logprob, {ids[place]: logprob, ord("y"): -2.0})


def writer(write: Write, delays: int = 0, prompts: float = 0.0) -> Scripted:
    """A model of one's own, with something to say of every token."""
    return Scripted(write, believed, delays=delays, prompts=prompts)


def answers(*words: str, length: int = 12) -> Write:
    """Texts of up to `length` letters that end with one of the words, all of them equally likely."""

    def write(ids: Sequence[int], noise: random.Random) -> str:
        return "".join(noise.choices("abc \n", k=noise.randrange(length))) + "=" + noise.choice(words)

    return write


class _NoWait(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        assert found or timeout is not None, "everybody waits, and for nothing that will come"
        self.now += 0.0 if found else max(0.0, timeout or 0.0)
        return found


class Instant(asyncio.SelectorEventLoop):
    """Where everybody waits, the clock goes on to the next time that is waited for."""

    def __init__(self) -> None:
        self.selector = _NoWait()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def instantly(main: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What a coroutine returns, and how many seconds it took on its clock."""
    loop = Instant()
    try:
        return loop.run_until_complete(main), loop.time()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
