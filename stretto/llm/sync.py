"""`LLM`: one model, one engine, ordinary calls."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.core.collector import collector_paused
from stretto.core.env import Env, read_env
from stretto.core.errors import UserError
from stretto.core.grammar import TokenMatcher
from stretto.core.sampling import Sampling
from stretto.core.settings import Settings, configure
from stretto.engine.engine import Engine
from stretto.engine.request import Event
from stretto.hub.models import resolve
from stretto.llm.adapters import Adapters, with_room
from stretto.llm.embeddings import Embedder, Embeddings
from stretto.llm.loading import Progress, load
from stretto.llm.options import approximations
from stretto.llm.prefixes import Prefixes
from stretto.llm.results import Chunk, Result, Stream
from stretto.llm.streams import Streams
from stretto.llm.submission import Prompt, Prompts, Submission
from stretto.text.chat import ChatTemplate, chat_ids
from stretto.text.grammar import Grammars

if TYPE_CHECKING:
    from stretto.convert.model_file import ModelFile

Message = Mapping[str, Any]
"""One turn of a conversation in OpenAI's shape: `role` and `content`."""
_log = logging.getLogger("stretto")


class LLM:
    """One model with one engine. Not thread-safe (see `AsyncLLM`); several can live in one process.

        LLM("smollm2", draft="none", context=4096)

    model: an alias ("smollm2"), a .gguf file or a checkpoint directory. settings: how it is run; None is what the
    environment says, else the defaults. changes: fields of `Settings` that differ. `settings` says what was taken,
    `backend_choice` who computes, and why, `program` where what later starts need is kept (else `why_not_kept`);
    `prefixes` go to files and back. progress: called with (done, total) while weights are read. note: gets a line when
    the kernels are compiled, which happens once, and what is to be known of the model and its sizes (default for that:
    a warning by `logging`). loras: adapters that are loaded at once, by name (`Adapters`). Raises UserError and its
    subclasses (see stretto.core.errors).
    """

    @collector_paused()
    def __init__(
        self,
        model: str | Path,
        settings: Settings | None = None,
        *,
        progress: Progress | None = None,
        env: Env | None = None,
        note: Callable[[str], None] | None = None,
        loras: Mapping[str, str | Path] | None = None,
        **changes: Any,
    ) -> None:
        started = time.perf_counter()
        self.settings = with_room((settings or configure(besides=changes).settings).replace(**changes), loras or {})
        source = self.settings.read_template()
        self._model, self._env, tell = model, env or read_env(), note or _log.warning
        loaded = load(model, self.settings, self._env, progress=progress, note=note, tell=tell)
        self.tokenizer, self.hints, self.backend_choice = loaded.tokenizer, loaded.hints, loaded.choice
        self.template, self._grammars = ChatTemplate.of(self.tokenizer, source), Grammars(self.tokenizer)
        self.program, self.why_not_kept = loaded.program, loaded.why_not_kept
        approximate = approximations(self.settings, kv_is_approximate=loaded.kv_is_approximate)
        self.load_s = time.perf_counter() - started
        self._streams = Streams(loaded.engine, self.load_s, approximate)
        self.loras = Adapters(loaded.engine, lambda: self.file, loras or {})
        self.prefixes = Prefixes(self._streams, self.encode, resolve(str(model), env=self._env), self.settings.dtype)
        self.embedder = Embedder(self.tokenizer, loaded.pooling, self.engine.runner.d_model)

    @cached_property
    def file(self) -> "ModelFile":
        """The opened files of the model (read when it is asked for)."""
        from stretto.llm.anew import open_file

        return open_file(self._model, self._env)

    @property
    def engine(self) -> Engine:
        """What runs the model, for loops of your own: `add`, then `engine.step` and `read`."""
        return self._streams.engine

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a raw prompt; ids pass through."""
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the assistant's turn.

        tools: what the model may call, as OpenAI's `{"type": "function", "function": {...}}`. options: further names
        that the template reads (`enable_thinking`, `documents`, ...; see `stretto.text.chat.KWARGS`). Raises
        UserError if there is no template, and for tools that the template has no place for: the model would never
        see them. `chat_ids` says when a BOS comes first.
        """
        return chat_ids(self.tokenizer, self.template, messages, tools=tools, kwargs=options)

    def generate(
        self,
        prompts: Prompts,
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        lora: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Result]:
        """Continue every prompt (strings or lists of token ids); one result per prompt, in order.

        sampling: one for all, or one per prompt. If one prompt fails, the others are cancelled and its error is raised.
        lora: name of an adapter that is loaded (`loras`), here and below. progress: called with
        (finished, total) after every step.
        """
        many = as_prompts(prompts)
        each = zip(many, as_samplings(sampling, len(many)), strict=True)
        added = (self.add(self.encode(prompt), one, continues=True, lora=lora) for prompt, one in each)
        return self._streams.results(added, progress)

    def stream(self, prompt: Prompt, sampling: Sampling | None = None, *, lora: str | None = None) -> Iterator[Chunk]:
        """Continue one prompt, chunk by chunk; the last chunk carries the `Result`. Closing the iterator cancels."""
        ids = self.encode(prompt)
        return self._streams.chunks(lambda: self.add(ids, sampling or Sampling(), continues=True, lora=lora))

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        lora: str | None = None,
        **options: Any,
    ) -> Result:
        """Answer a conversation ([{"role": ..., "content": ...}, ...]). options: those of `encode_chat`, tools too."""
        ids = self.encode_chat(messages, **options)
        return self._streams.results([self.add(ids, sampling or Sampling(), continues=False, lora=lora)])[0]

    def chat_stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        lora: str | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        """`chat`, chunk by chunk."""
        ids = self.encode_chat(messages, **options)
        return self._streams.chunks(lambda: self.add(ids, sampling or Sampling(), continues=False, lora=lora))

    def embed(self, texts: Prompts, *, dimensions: int | None = None, lora: str | None = None) -> Embeddings:
        """Every text (or list of token ids) as a vector of unit length. dimensions: the first so many numbers of it, of
        unit length again."""
        submissions = self.embedder.submissions(as_prompts(texts), dimensions, lora=lora)
        return Embeddings.of(self._streams.results(map(self.submit, submissions)), dimensions)

    def matcher(self, sampling: Sampling) -> TokenMatcher | None:
        """What follows the grammar of one request, if there is one. Any thread may ask; it takes milliseconds as a rule
        and seconds at worst. Raises UserError for a grammar that cannot be used."""
        return self._grammars.matcher(sampling.grammar)

    def add(self, ids: Sequence[int], sampling: Sampling, *, continues: bool, lora: str | None = None) -> Stream:
        """Queue a request without running it (for loops of your own, over `engine.step`).

        continues: the text goes on from the prompt, so its first space belongs to it.
        """
        return self.submit(Submission(ids=ids, sampling=sampling, continues=continues, lora=lora))

    def submit(self, one: Submission) -> Stream:
        """`add`, with everything that can be said of a request."""
        sampling = one.sampling.resolve(self.hints)
        request = self.engine.add(
            one.ids,
            sampling,
            one.text(self.tokenizer),
            matcher=one.matcher or self.matcher(sampling),
            **one.how(),
        )
        return Stream(request)

    def read(self, stream: Stream, event: Event) -> Chunk:
        """An event of `engine.step` as the next chunk of its stream. If it failed, no result: raise `event.error`."""
        return self._streams.read(stream, event)


def as_prompts(prompts: Prompts) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], int) else items


def as_samplings(sampling: Sampling | Sequence[Sampling] | None, num_prompts: int) -> Sequence[Sampling]:
    """One per prompt."""
    if sampling is None or isinstance(sampling, Sampling):
        return [sampling or Sampling()] * num_prompts
    if len(sampling) != num_prompts:
        raise UserError(f"{num_prompts} prompts but {len(sampling)} sampling settings", try_="one per prompt, or one")
    return sampling
