"""Several coroutines at once; whatever ends the wait ends all of them."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def as_ended(work: Iterable[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Their results, each as it comes. Closing the generator, or an error in one, cancels the others and waits for
    their ends."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        for one in asyncio.as_completed(tasks):
            yield await one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order. The first error cancels the others."""

    async def numbered(number: int, one: Coroutine[Any, Any, T]) -> tuple[int, T]:
        return number, await one

    found: dict[int, T] = {}
    async with aclosing(as_ended([numbered(number, one) for number, one in enumerate(work)])) as ended:
        async for number, result in ended:
            found[number] = result
    return [found[number] for number in range(len(found))]
