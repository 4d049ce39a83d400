"""Several coroutines at once; whatever ends the wait ends all of them."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def as_ended(work: Iterable[Coroutine[Any, Any, T]], width: int = 0) -> AsyncGenerator[T, None]:
    """Their results, each as it comes. width: so many at a time (0 = all); the next one begins when the caller, who has
    heard of an end, asks for more. Closing the generator, or an error in one, cancels the others and waits for their
    ends."""
    waiting, running = deque(work), dict[asyncio.Future[T], None]()  # in the order in which they began
    try:
        while waiting or running:
            while waiting and not 0 < width <= len(running):
                running[asyncio.ensure_future(waiting.popleft())] = None
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task.done()]:
                del running[task]
                yield task.result()
    finally:
        for one in waiting:
            one.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order. The first error cancels the others."""

    async def numbered(number: int, one: Coroutine[Any, Any, T]) -> tuple[int, T]:
        return number, await one

    found: dict[int, T] = {}
    async with aclosing(as_ended([numbered(number, one) for number, one in enumerate(work)])) as ended:
        async for number, result in ended:
            found[number] = result
    return [found[number] for number in range(len(found))]
