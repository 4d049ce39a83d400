"""What a search needs of a model, and how an `AsyncLLM` gives it."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from stretto.core.sampling import Sampling
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.results import Chunk
from stretto.llm.sync import Message


class Model(Protocol):
    """Writes texts behind prompts of token ids."""

    @property
    def context(self) -> int:
        """Tokens of a prompt and what is written behind it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text that goes on behind others."""

    async def question(self, text: str) -> list[int]:
        """A prompt that asks a question."""

    async def joined(
        self, question: str, prompt: Sequence[int], texts: Sequence[Sequence[int]], suffix: str
    ) -> list[int]:
        """A prompt in which texts, written behind `prompt`, which asks `question`, are followed by `suffix`."""

    def stream(self, ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        """What is written behind `ids`; closing it ends the request."""


class Hosted:
    """A model behind an `AsyncLLM`. raw: prompts are plain texts that the model continues, in place of conversations in
    its chat template. system: a message that comes before the question."""

    def __init__(self, llm: AsyncLLM, *, raw: bool = False, system: str | None = None) -> None:
        self._llm, self._raw = llm, raw
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    @property
    def context(self) -> int:
        return self._llm.llm.engine.runner.sizes.context

    def decode(self, ids: Sequence[int]) -> str:
        return self._llm.llm.tokenizer.decode(ids)

    async def encode(self, text: str) -> list[int]:
        return await self._llm.offload(lambda: self._llm.llm.tokenizer.encode(text, add_bos=False))

    async def question(self, text: str) -> list[int]:
        if self._raw:
            return await self._llm.offload(lambda: self._llm.llm.encode(text))
        return await self._chat([{"role": "user", "content": text}])

    async def joined(
        self, question: str, prompt: Sequence[int], texts: Sequence[Sequence[int]], suffix: str
    ) -> list[int]:
        """Raw: prompt, texts and suffix as they are. Else a conversation: the question, the texts as one answer, and
        the suffix as what the user says next."""
        if self._raw:
            return [*prompt, *(token for text in texts for token in text), *await self.encode(suffix)]
        answer = "\n\n".join(self.decode(text).strip() for text in texts)
        return await self._chat(
            [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": suffix},
            ]
        )

    def stream(self, ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        return self._llm.stream(ids, sampling)

    async def _chat(self, messages: Sequence[Message]) -> list[int]:
        return await self._llm.offload(lambda: self._llm.llm.encode_chat([*self._system, *messages]))
