"""Work beside the event loop, in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Run `work` in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def settle(finish: Callable[[], None]) -> None:
        if not found.cancelled():
            finish()

    def run() -> None:
        try:
            finish = partial(found.set_result, work())
        except BaseException as problem:  # whatever it is, it is raised where the result is awaited
            finish = partial(found.set_exception, problem)
        with suppress(RuntimeError):  # the server ended first
            loop.call_soon_threadsafe(settle, finish)

    threading.Thread(target=run, name="stretto-work", daemon=True).start()
    return found
