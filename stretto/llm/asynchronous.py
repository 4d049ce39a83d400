"""`AsyncLLM`: the same for event loops, over one engine thread."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.core.settings import Settings
from stretto.llm.adapters import AsyncAdapters
from stretto.llm.admission import Admission, Reader, check_bounds
from stretto.llm.answers import Answers
from stretto.llm.embeddings import Embeddings
from stretto.llm.engine_thread import EngineThread
from stretto.llm.results import Chunk, Result
from stretto.llm.submission import Prompt, Prompts, Submission
from stretto.llm.sync import LLM, Message, as_prompts, as_samplings
from stretto.llm.watch import Watch

T = TypeVar("T")


class AsyncLLM:
    """`LLM` for asyncio: one engine thread, one queue. Requests from any number of tasks are batched together.

        async with AsyncLLM("smollm2") as llm:
            async for chunk in llm.stream("Once upon a time"): ...

    A task may be cancelled and a stream closed at any moment: its request ends within one step, and no other request
    notices. Several event loops, each in its own thread, may share one instance. model: an `LLM`, which nobody else may
    use until `close` is done, or what `LLM` takes, with its settings and options. max_waiting: requests that may be
    queued or running at a time; one more is refused with BusyError, whose `retry_after` says in how many seconds a
    place should be free. max_queued_tokens: tokens that the prompts of waiting requests may have together (None: any
    number); one more prompt is refused in the same way, unless nobody waits. What goes wrong with one request is raised
    by it alone.
    """

    def __init__(
        self,
        model: str | Path | LLM,
        settings: Settings | None = None,
        *,
        max_waiting: int = 1024,
        max_queued_tokens: int | None = None,
        **options: Any,
    ) -> None:
        check_bounds(max_waiting, max_queued_tokens)
        if isinstance(model, LLM) and (settings or options):
            names = ", ".join(options) or "settings"
            raise UserError(f"options beside an LLM: {names}", why="it has been made with its own")
        self.max_waiting = max_waiting
        self._llm = model if isinstance(model, LLM) else LLM(model, settings, **options)
        self._admission = Admission(max_waiting, self._llm.engine.clock, max_queued_tokens=max_queued_tokens)
        self.thread = EngineThread(self._llm, self._admission)
        self.loras = AsyncAdapters(self._llm.loras, self._admission)

    @property
    def num_requests(self) -> int:
        """Requests that are queued or running."""
        return self._admission.num_requests

    @property
    def llm(self) -> LLM:
        """The model, for what needs no engine: its tokenizer, template, hints, settings."""
        return self._llm

    @property
    def is_over(self) -> bool:
        """Whether the engine thread has ended, by `close` or by a fault."""
        return self.thread.ended.done()

    async def offload(self, work: Callable[[], T]) -> T:
        """Run what takes time and needs no engine (templates, tokenizers) in the threads that are there for it."""
        return await asyncio.wrap_future(self._admission.offload(work))

    def submit(self, submissions: Sequence[Submission]) -> Answers:
        """Queue requests, all or none, and read them together.

        A request with a grammar comes with its matcher (`offload` it: `llm.matcher`). Raises BusyError if there are not
        enough places, UserError if there never are so many, or if all is over. What is wrong with one of the requests
        is raised when it is read.
        """
        assert all(one.sampling.grammar is None or one.matcher is not None for one in submissions), "compiled elsewhere"
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        readers = [Reader(loop, number, arrived) for number in range(len(submissions))]
        self._admission.submit(readers, submissions)
        return Answers(self._admission, readers, arrived)

    async def ask(self, question: Callable[[Watch], T]) -> T:
        """What `question` says of the engine, between two of its steps: `Watch.counts`, for example."""
        return await asyncio.wrap_future(self._admission.ask(question))

    def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, *, lora: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """As `LLM.stream`. Leaving the loop early does not end the request at once; `aclose()` does."""
        return self._iterate(lambda: self._llm.encode(prompt), sampling, continues=True, lora=lora)

    def chat_stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        lora: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[Chunk, None]:
        """As `LLM.chat_stream`; see `stream`."""
        encode = partial(self._llm.encode_chat, messages, **options)
        return self._iterate(encode, sampling, continues=False, lora=lora)

    async def generate(
        self,
        prompts: Prompts,
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        lora: str | None = None,
    ) -> list[Result]:
        """As `LLM.generate`. If one prompt fails, the others are cancelled and its error is raised."""
        many = as_prompts(prompts)
        if len(many) > self.max_waiting:
            why = f"max_waiting is {self.max_waiting:,}"
            raise UserError(f"{len(many):,} prompts", why=why, try_="fewer at a time")
        each = zip(many, as_samplings(sampling, len(many)), strict=True)
        return await _all([asyncio.ensure_future(_last(self.stream(*one, lora=lora))) for one in each])

    async def chat(self, messages: Sequence[Message], sampling: Sampling | None = None, **options: Any) -> Result:
        """As `LLM.chat`."""
        return await _last(self.chat_stream(messages, sampling, **options))

    async def embed(self, texts: Prompts, *, dimensions: int | None = None, lora: str | None = None) -> Embeddings:
        """As `LLM.embed`."""
        submissions = await self.offload(
            lambda: self._llm.embedder.submissions(as_prompts(texts), dimensions, lora=lora)
        )
        return Embeddings.of(await self.submit(submissions).results(), dimensions)

    async def _iterate(
        self, encode: Callable[[], list[int]], sampling: Sampling | None, **how: Any
    ) -> AsyncGenerator[Chunk, None]:
        reader, one = Reader(asyncio.get_running_loop()), sampling or Sampling()

        def prepare() -> Submission:
            return Submission(ids=encode(), sampling=one, matcher=self._llm.matcher(one), **how)

        self._admission.open(reader, prepare)
        try:
            while True:
                chunk = await reader.next()
                yield chunk
                if chunk.result is not None:
                    return
        finally:
            self._admission.drop(reader)

    async def close(self) -> None:
        """End the engine thread; streams that are open get a UserError. Again is fine; so is cancelling the wait."""
        self._admission.close()
        await asyncio.shield(asyncio.wrap_future(self.thread.ended))
        self.thread.join()

    async def aclose(self) -> None:
        """`close`, under the name that `contextlib.aclosing` knows."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _all(tasks: Sequence[asyncio.Future[Result]]) -> list[Result]:
    """What they give; if one fails, or this wait is cancelled, all are cancelled."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _last(chunks: AsyncIterator[Chunk]) -> Result:
    result = None
    async for chunk in chunks:
        result = chunk.result
    assert result is not None, "the last chunk carries the result"
    return result
