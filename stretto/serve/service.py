"""`Service`: a model as the routes see it, from loading to the end. `Models` has one for each; one event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from stretto.llm.admission import Closed
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.watch import Measures, Watch
from stretto.serve.about import About
from stretto.serve.errors import ApiError, TooLong, draining, invalid, loading, model_not_found, unloaded
from stretto.serve.live import Live
from stretto.serve.log import LOGGER
from stretto.serve.metrics import Metrics
from stretto.serve.parts import CallReaders
from stretto.serve.reasoning import Tags, tags_of
from stretto.text.tokenizer import Tokenizer
from stretto.text.tool_calls import ToolCallReader
from stretto.text.tools import ToolFormat, find_format

T = TypeVar("T")
COUNT_SECONDS = 1.0  # for an engine to say what it does, between two steps
STUCK_SECONDS = 10.0  # an engine with work that did not come round for so long is not healthy
MOST_CHARACTERS = 32  # per token of context: a longer text is refused before it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """names: of the model, the first one for answers. strict: unknown fields are refused. reasoning: thinking is told
    from the answer. max_body: bytes. prefix: of the metrics."""

    names: tuple[str, ...]
    strict: bool = False
    reasoning: bool = True
    max_body: int = 8 << 20
    prefix: str = "stretto"


class Service:
    """A model that is served. It begins in the state "loading"; `open` makes it "ready", `release` "unloaded", and
    then it may be opened again. about: what it is, known since it was loaded first."""

    def __init__(self, config: Config) -> None:
        self.config, self.created = config, int(time.time())
        self.state: Literal["loading", "ready", "unloaded", "draining"] = "loading"
        self.metrics, self.live = Metrics(config.prefix, config.names[0]), Live()
        self.thinking: Tags | None = None  # around the thinking, where the model does think
        self.tags: Tags | None = None  # the same, if the thinking is told from the answer
        self.call_format: ToolFormat | None = None
        self.call_readers: CallReaders | None = None  # None: calls stay in the text, as the model writes them
        self.num_calls = 0  # whose body has come and whose response has not gone
        self.about: About | None = None
        self._llm: AsyncLLM | None = None

    @property
    def name(self) -> str:
        """Of the model, in answers."""
        return self.config.names[0]

    @property
    def llm(self) -> AsyncLLM:
        """The model. Raises ApiError while there is none."""
        if self._llm is None:
            if self.state == "unloaded":
                raise unloaded(self.name)
            raise loading() if self.state == "loading" else draining()
        if self._llm.is_over and self.state == "ready":
            raise ApiError(503, "The engine has ended", code=503)
        return self._llm

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._llm is not None

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.llm.llm.engine.runner.sizes.context

    @property
    def order(self) -> str:
        """Name of the policy that says which request is served first."""
        order = self.llm.llm.settings.order
        return order.partition(":")[0] if isinstance(order, str) else type(order).__name__.lower()

    def open(self, llm: AsyncLLM) -> None:
        """The model is there."""
        self._llm = llm
        template = llm.llm.template
        source = template.source if template is not None else None
        self.thinking = tags_of(source)
        self.tags = self.thinking if self.config.reasoning else None
        if (form := find_format(source)) is not None:
            self.call_format, self.call_readers = form, partial(ToolCallReader, form)
        if self.tags is not None and not in_text(llm.llm.tokenizer, self.tags):
            LOGGER.warning("the tags of the thinking are special tokens: it stays with the answer")
            self.tags = None
        self.about = About.of(llm.llm, thinks=self.tags is not None, calls=self.call_readers is not None)
        if self.state != "draining":
            self.state = "ready"

    async def release(self) -> None:
        """Give the memory of the model back. Nobody may be using it."""
        llm, self._llm = self._llm, None
        if self.state != "draining":
            self.state = "unloaded"
        if llm is not None:
            await llm.close()

    def drain(self) -> None:
        """Take no new work; what runs goes on."""
        self.state = "draining"

    async def close(self) -> None:
        """End everything, at once."""
        self.state = "draining"
        if self._llm is not None:
            await self._llm.close()

    def check_health(self) -> None:
        """Raise ApiError unless the model is there and its engine lives. A server that drains is healthy."""
        llm = self.llm
        if llm.is_over or (llm.num_requests and time.monotonic() - llm.ticked > STUCK_SECONDS):
            raise ApiError(503, "The engine does not answer", code=503, retry_after=10)

    def check_open(self) -> None:
        """Raise ApiError while the server starts or drains. A model that is not loaded is no reason."""
        if self.state in ("loading", "draining"):
            raise loading() if self.state == "loading" else draining()

    def model(self, name: str | None) -> AsyncLLM:
        """The model of this name, for new work; a request without a name means the only one. Raises ApiError."""
        if self.state == "draining":
            raise draining()
        llm = self.llm
        if name is not None and name not in self.config.names:
            raise model_not_found(name)
        return llm

    def check_text(self, texts: Sequence[str], param: str) -> None:
        """Raise ApiError for more text than the context could hold, before it is read."""
        have, most = sum(map(len, texts)), MOST_CHARACTERS * self.context
        if have > most:
            raise TooLong(
                f"{param}: {have:,} characters cannot fit into the context of {self.context:,} tokens",
                param,
                have=have,
                most=most,
                unit="characters",
            )

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise ApiError for a prompt that leaves no room for an answer, is empty, or is not of this vocabulary."""
        engine = self.llm.llm.engine
        if not ids:
            raise invalid(f"{param}: the prompt is empty", param)
        if len(ids) >= self.context:
            raise TooLong(
                f"The prompt has {len(ids):,} tokens, and the context of this model is {self.context:,}: at least one"
                " token must be left for the answer",
                param,
                have=len(ids),
                most=self.context - 1,
            )
        if (worst := max(ids)) >= engine.runner.vocab_size:
            raise invalid(f"{param}: token id {worst} does not exist", param)

    async def measures(self) -> Measures | None:
        """Of the engine; None while there is none, or if it does not answer in time."""
        with suppress(ApiError, Closed):
            return await self.ask(Watch.measures, COUNT_SECONDS)
        return None

    async def ask(self, question: Callable[[Watch], T], seconds: float = STUCK_SECONDS) -> T:
        """What `question` says of the engine. Raises ApiError while there is none, or if it does not answer in time."""
        llm = self.llm
        try:
            async with asyncio.timeout(seconds):
                return await llm.ask(question)
        except TimeoutError:
            raise ApiError(503, "The engine does not answer", code=503, retry_after=seconds) from None


def in_text(tokenizer: Tokenizer, tags: Tags) -> bool:
    """Whether the tags come out as text, so that they can be found there."""
    return all(tokenizer.decode(tokenizer.encode(tag, add_bos=False)).strip() == tag for tag in tags)
