"""`Service`: a model as the routes see it, from loading to the end. `Models` has one for each; one event loop."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from stretto.llm.admission import Closed
from stretto.llm.asynchronous import AsyncLLM
from stretto.llm.watch import Measures, Watch
from stretto.serve.about import About
from stretto.serve.errors import ApiError, draining, loading, model_not_found, unloaded
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
ASK_SECONDS = 10.0  # for the same where a client waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """names: of the model, the first one for answers. loras: adapters that are loaded with it. strict: unknown fields
    are refused. reasoning: thinking is told from the answer. max_body: bytes. prefix: of the metrics. lora_dir: where
    adapters may be loaded from, prefix_dir: where prefixes are saved; None = nowhere. stuck_seconds: an engine that has
    work and does not come round for so long is not healthy; exit_when_stuck: and the process ends."""

    names: tuple[str, ...]
    loras: tuple[str, ...] = ()
    strict: bool = False
    reasoning: bool = True
    max_body: int = 8 << 20
    prefix: str = "stretto"
    lora_dir: Path | None = None
    prefix_dir: Path | None = None
    stuck_seconds: float = 120.0
    exit_when_stuck: bool = False


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
    def names(self) -> tuple[str, ...]:
        """Of the model, and of the adapters that are loaded or come with it, which are models to clients."""
        loras = self._llm.loras.names if self._llm is not None else self.config.loras
        return (*self.config.names, *(name for name in loras if name not in self.config.names))

    def lora(self, name: str | None) -> str | None:
        """The adapter that is asked for under this name of a model; None for the model itself."""
        return name if name in self.names and name not in self.config.names else None

    def shown(self, name: str | None) -> str:
        """The name that an answer bears: that of the model, or of the adapter that was asked for."""
        return self.lora(name) or self.name

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
        if llm.is_over or llm.thread.silence > self.config.stuck_seconds:
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
        if name is not None and name not in self.names:
            raise model_not_found(name)
        return llm

    async def measures(self) -> Measures | None:
        """Of the engine; None while there is none, or if it does not answer in time."""
        with suppress(ApiError, Closed):
            return await self.ask(Watch.measures, COUNT_SECONDS)
        return None

    async def ask(self, question: Callable[[Watch], T], seconds: float = ASK_SECONDS) -> T:
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
