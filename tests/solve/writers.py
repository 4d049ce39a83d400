"""Models whose texts are known, and an event loop whose time passes only where somebody waits for it."""

import asyncio
import random
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from stretto.core.sampling import Sampling
from stretto.engine.request import TokenLogprobs
from stretto.llm.results import Chunk, Result, Timings, Usage

T = TypeVar("T")
Write = Callable[[Sequence[int], random.Random], str]


class Scripted:
    """Tokens are characters. write: what follows a prompt, drawn from the noise of its seed; its end is the model's
    own. Every token takes a time drawn from `delays`, so which text ends first changes with it, and nothing else.

    written: tokens that it computed: where a stream is closed early, up to three more than were read, as an engine does
    that runs ahead; requests: prompts and limits, as they came; running: streams that are open.
    """

    def __init__(self, write: Write, *, delays: int = 0, context: int = 1 << 20) -> None:
        self._write, self._delays, self.context = write, random.Random(delays), context
        self.written = self.running = 0
        self.requests: list[tuple[Sequence[int], Sampling]] = []

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    async def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    async def question(self, text: str) -> list[int]:
        return await self.encode(text)

    async def joined(
        self, question: str, prompt: Sequence[int], texts: Sequence[Sequence[int]], suffix: str
    ) -> list[int]:
        return [*prompt, *(token for text in texts for token in text), *await self.encode(suffix)]

    async def stream(self, ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        self.requests.append((ids, sampling))
        self.running += 1
        left, result = sampling.max_tokens or 0, None
        try:
            async for chunk in self._chunks(list(ids), sampling):
                left, result = left - 1, chunk.result
                yield chunk
        finally:
            self.running -= 1
            self.written += 0 if result is not None else min(left, 3)

    async def _chunks(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        assert sampling.max_tokens is not None
        text = self._write(ids, random.Random(f"{sampling.seed}/{len(ids)}")) or "."
        found, logprobs = "", list[TokenLogprobs]()
        for number, letter in enumerate(text, 1):
            await asyncio.sleep(self._delays.random())
            self.written += 1
            found += letter
            logprobs += [believed(letter)] if sampling.logprobs is not None else []
            stop = next((one for one in sampling.stops if found.endswith(one)), None)
            reason = "stop" if stop is not None or number == len(text) else "length"
            result = None
            if reason == "stop" or number == sampling.max_tokens:
                result = Result(
                    text=found.removesuffix(stop or ""),
                    token_ids=tuple(map(ord, found)),
                    prompt_token_ids=tuple(ids),
                    finish_reason=reason,  # type: ignore[arg-type]
                    usage=Usage(len(ids), number),
                    timings=Timings(0, 0, 0, 0, 0, 0, number, 0, 0),
                    seed=sampling.seed or 0,
                    logprobs=tuple(logprobs),
                    prompt_logprobs=tuple(believed(chr(one)) for one in ids[1:])
                    if sampling.prompt_logprobs is not None
                    else (),
                    stop_string=stop,
                )
            yield Chunk(letter, (ord(letter),), result=result, logprobs=tuple(logprobs[-1:]))
            if result is not None:
                return


def believed(letter: str) -> TokenLogprobs:
    """What the model thinks of a letter."""
    logprob = -((ord(letter) * 7) % 13 + 1) / 10
    return TokenLogprobs(logprob, {ord(letter): logprob, ord("y"): -2.0})


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
