"""`AsyncLLM`: the same for event loops, over one engine thread."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.engine.request import Event
from stretto.llm.results import Chunk, Result, Stream
from stretto.llm.sync import LLM, STREAM_PATIENCE, Message, Prompt, as_prompts


class AsyncLLM:
    """`LLM` for asyncio: one engine thread, one queue. Requests from any number of tasks are batched together.

        async with AsyncLLM("smollm2") as llm:
            async for chunk in llm.stream("Once upon a time"): ...

    Closing a stream early cancels its request within one step.
    """

    def __init__(self, model: str | Path | LLM, **options: Any) -> None:
        self._llm = model if isinstance(model, LLM) else LLM(model, **options)
        self._inbox: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._live: dict[int, tuple[Stream, Callable[[Chunk | BaseException], None]]] = {}
        self._thread = threading.Thread(target=self._loop, name="stretto-engine", daemon=True)
        self._thread.start()

    async def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> AsyncIterator[Chunk]:
        """As `LLM.stream`."""
        async for chunk in self._iterate(lambda: self._llm.encode(prompt), sampling, continues=True):
            yield chunk

    async def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None, **options: Any
    ) -> AsyncIterator[Chunk]:
        """As `LLM.chat_stream`."""
        async for chunk in self._iterate(lambda: self._llm.encode_chat(messages, **options), sampling, continues=False):
            yield chunk

    async def generate(self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | None = None) -> list[Result]:
        """As `LLM.generate`."""

        async def one(prompt: Prompt) -> Result:
            return await _last(self.stream(prompt, sampling))

        return list(await asyncio.gather(*(one(prompt) for prompt in as_prompts(prompts))))

    async def chat(self, messages: Sequence[Message], sampling: Sampling | None = None, **options: Any) -> Result:
        """As `LLM.chat`."""
        return await _last(self.chat_stream(messages, sampling, **options))

    async def _iterate(
        self, encode: Callable[[], list[int]], sampling: Sampling | None, *, continues: bool
    ) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()

        def deliver(item: Chunk | BaseException) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, item)

        added: Future[int] = Future()

        def add() -> None:
            try:
                stream = self._llm.add(encode(), sampling or Sampling(), continues=continues)
            except BaseException as problem:
                added.set_exception(problem)
            else:
                self._live[stream.request.rid] = (stream, deliver)
                added.set_result(stream.request.rid)

        self._post(add)
        rid = await asyncio.wrap_future(added)
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.result is not None:
                    return
        finally:
            self._post(lambda: self._drop(rid))

    def _post(self, command: Callable[[], None]) -> None:
        if not self._thread.is_alive():
            raise UserError("this AsyncLLM is closed", try_="make a new one")
        self._inbox.put(command)

    def _drop(self, rid: int) -> None:
        if self._live.pop(rid, None) is not None:
            self._llm.engine.cancel(rid)

    def _loop(self) -> None:
        """The engine thread: commands between steps, then a step; sleeps while there is nothing to do."""
        while True:
            wait = self._llm.engine.is_idle
            try:
                command = self._inbox.get(block=wait)
                if command is None:
                    return
                command()
                continue
            except queue.Empty:
                pass
            try:
                self._dispatch(self._llm.engine.step(STREAM_PATIENCE))
            except Exception as problem:  # the thread outlives a failed step; its requests do not
                for rid, (_, deliver) in list(self._live.items()):
                    self._drop(rid)
                    deliver(problem)

    def _dispatch(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.rid in self._live:
                stream, deliver = self._live[event.rid]
                chunk = self._llm.read(stream, event)
                if chunk.result is not None:
                    del self._live[event.rid]
                deliver(chunk)

    def close(self) -> None:
        """Stop the engine thread; streams that are still open get an error."""
        self._inbox.put(None)
        self._thread.join()
        for rid, (_, deliver) in list(self._live.items()):
            self._drop(rid)
            deliver(UserError("the engine was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def _last(chunks: AsyncIterator[Chunk]) -> Result:
    result = None
    async for chunk in chunks:
        result = chunk.result
    assert result is not None, "the last chunk carries the result"
    return result
