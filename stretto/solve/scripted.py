"""`Scripted`: a model that computes nothing, whose texts follow a rule: for simulations and for laws of searches."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import chain

from stretto.core.sampling import Sampling
from stretto.engine.request import FinishReason, TokenLogprobs
from stretto.llm.results import Chunk, Result, Timings, Usage

Write = Callable[[Sequence[int], random.Random], str]
"""What follows a prompt, drawn from the noise of a seed. Its end is the model's own."""
Believe = Callable[[Sequence[int], int], TokenLogprobs]
"""What the model thinks of the token at a place of a text."""


class Scripted:
    """Tokens are characters. Every token takes a time of the event loop, drawn from `delays`, up to `slowest` seconds,
    and so does a prompt, up to `prompts` seconds: which text ends first changes with it, and nothing else.

    written: tokens that it computed; where a stream is closed early, up to three more than were read, as an engine does
    that runs ahead. requests: prompts and limits, as they came. running: streams that are open.
    """

    def __init__(
        self,
        write: Write,
        believe: Believe = lambda ids, place: TokenLogprobs(0.0, {}),
        *,
        delays: int = 0,
        slowest: float = 1.0,
        prompts: float = 0.0,
        context: int = 1 << 20,
    ) -> None:
        self._write, self._believe = write, believe
        self._delays, self._slowest, self._prompts = random.Random(delays), slowest, prompts
        self.context = context
        self.written = self.running = 0
        self.requests: list[tuple[Sequence[int], Sampling]] = []

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    async def encode(self, text: str) -> list[int]:
        await asyncio.sleep(self._prompts * self._delays.random())
        return [ord(letter) for letter in text]

    async def question(self, text: str) -> list[int]:
        return await self.encode(text)

    async def joined(
        self, question: str, prompt: Sequence[int], texts: Sequence[Sequence[int]], suffix: str
    ) -> list[int]:
        return [*prompt, *chain(*texts), *await self.encode(suffix)]

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
        text = self._write(ids, random.Random(f"{sampling.seed}/{len(ids)}")) or "."
        whole, logprobs = list(ids), list[TokenLogprobs]()
        for number, letter in enumerate(text, 1):
            await asyncio.sleep(self._slowest * self._delays.random())
            self.written += 1
            whole.append(ord(letter))
            logprobs += [self._believe(whole, len(whole) - 1)] if sampling.logprobs is not None else []
            stop = next((one for one in sampling.stops if text[:number].endswith(one)), None)
            reason: FinishReason = "stop" if stop is not None or number == len(text) else "length"
            is_last = reason == "stop" or number == sampling.max_tokens
            result = self._result(ids, text[:number], reason, stop, logprobs, sampling) if is_last else None
            yield Chunk(letter, (ord(letter),), result=result, logprobs=tuple(logprobs[-1:]))
            if is_last:
                return

    def _result(
        self,
        ids: Sequence[int],
        text: str,
        reason: FinishReason,
        stop: str | None,
        logprobs: Sequence[TokenLogprobs],
        sampling: Sampling,
    ) -> Result:
        places = range(1, len(ids)) if sampling.prompt_logprobs is not None else ()
        return Result(
            text=text.removesuffix(stop or ""),
            token_ids=tuple(map(ord, text)),
            prompt_token_ids=tuple(ids),
            finish_reason=reason,
            usage=Usage(len(ids), len(text)),
            timings=Timings(0, 0, 0, 0, 0, 0, len(text), 0, 0),
            seed=sampling.seed or 0,
            logprobs=tuple(logprobs),
            prompt_logprobs=tuple(self._believe(ids, place) for place in places),
            stop_string=stop,
        )
