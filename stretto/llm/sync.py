"""`LLM`: one model, one engine, ordinary calls."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stretto.convert.load import Progress, load_model, matrix_codecs
from stretto.convert.model_file import ModelFile, open_model
from stretto.convert.show import generation_hints, ignored_hints
from stretto.core.drafter import Target
from stretto.core.env import Env, read_env
from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.core.settings import Settings, configure
from stretto.engine.engine import Engine
from stretto.engine.request import Event
from stretto.engine.scheduler import Policies
from stretto.hub.models import resolve
from stretto.llm.backend import choose
from stretto.llm.options import approximations, make_drafting, make_judge, make_order
from stretto.llm.results import Chunk, Result, Stream, Timings, Usage
from stretto.llm.sizes import DTYPES, choose_sizes
from stretto.models.lm import LM as LanguageModel
from stretto.runner.runner import Sizes
from stretto.text.chat import ChatTemplate, chat_ids
from stretto.text.stream import Text
from stretto.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
"""One turn of a conversation in OpenAI's shape: `role` and `content`."""
_log = logging.getLogger("stretto")
STREAM_PATIENCE, BATCH_PATIENCE = 0.03, 0.25  # seconds between two looks at a text: of a reader, of a loop


class LLM:
    """One model with one engine. Not thread-safe (see `AsyncLLM`); several can live in one process.

        LLM("smollm2", draft="none", context=4096)

    model: an alias ("smollm2"), a .gguf file or a checkpoint directory. settings: how it is run; None is what the
    environment says, else the defaults. changes: fields of `Settings` that differ. `settings` says what was taken, and
    `backend_choice` who computes, and why. progress: called with (done, total) while weights are read. note: gets a
    line when the kernels are compiled, which happens once, and what is to be known of the model and its sizes (default
    for that: a warning by `logging`). Raises UserError and its subclasses (see stretto.core.errors).
    """

    def __init__(
        self,
        model: str | Path,
        settings: Settings | None = None,
        *,
        progress: Progress | None = None,
        env: Env | None = None,
        note: Callable[[str], None] | None = None,
        **changes: Any,
    ) -> None:
        started = time.perf_counter()
        env = env or read_env()
        self.settings = (settings or configure(besides=changes).settings).replace(**changes)
        file = open_model(resolve(str(model), env=env, progress=True))
        self.file: ModelFile = file
        self.tokenizer = open_tokenizer(file)
        self.template = ChatTemplate.of(self.tokenizer, self.settings.read_template())
        self.hints = generation_hints(file)
        self._approximate = approximations(self.settings)
        self.backend_choice = choose(self.settings, matrix_codecs(file), env, note)
        threads = self.backend_choice.threads
        sizes, short = choose_sizes(file, self.settings, native=threads is not None)
        for text in (*file.notes, *ignored_hints(file), *filter(None, [short])):
            (note or _log.warning)(text)
        if threads is None:
            lm = load_model(file, DTYPES[self.settings.dtype], progress).prepack()
        else:
            lm = load_model(file, torch.float32, progress, team=threads)
        self.engine = self._engine(lm, sizes, env)
        for text in self.engine.notes:
            (note or _log.warning)(text)
        self._streams: dict[int, Stream] = {}  # those that are being read, by request
        self.load_s = time.perf_counter() - started

    def _engine(self, lm: LanguageModel, sizes: Sizes, env: Env) -> Engine:
        tokenizer, threads = self.tokenizer, self.backend_choice.threads

        def load(path: str) -> tuple[LanguageModel, Tokenizer]:
            file = open_model(resolve(path, env=env, progress=True))
            if threads is None:
                return load_model(file, DTYPES[self.settings.dtype]).prepack(), open_tokenizer(file)
            return load_model(file, torch.float32, team=threads), open_tokenizer(file)

        target = Target(
            model=lm,
            context=sizes.context,
            max_seqs=sizes.max_seqs,
            max_rows=sizes.max_rows,
            vocab_size=min(tokenizer.vocab_size, lm.config.vocab_size),
            threads=threads,
            tokenizer=tokenizer,
            kv_dtype=sizes.kv_dtype,
            load=load,
            eos_ids=tokenizer.eos_ids,
        )
        drafter, policy = make_drafting(self.settings.draft, target)
        return Engine(
            lm,
            sizes,
            drafter=drafter,
            judge=make_judge(self.settings.judge),
            policies=Policies(order=make_order(self.settings.order), draft=policy),
            eos_ids=tokenizer.eos_ids,
            vocab_size=tokenizer.vocab_size,
            threads=threads,
        )

    # -- prompts ---------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a raw prompt; ids pass through."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return list(prompt)

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

    # -- generation ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Result]:
        """Continue every prompt (strings or lists of token ids); one result per prompt, in order.

        sampling: one for all, or one per prompt. If one prompt fails, the others are cancelled and its error is raised.
        progress: called with (finished, total) after every step.
        """
        many = as_prompts(prompts)
        samplings = as_samplings(sampling, len(many))
        with self._opened([]) as streams:
            for prompt, one in zip(many, samplings, strict=True):
                self._open(streams, self.add(self.encode(prompt), one, continues=True))
            return self._run(streams, progress)

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[Chunk]:
        """Continue one prompt, chunk by chunk; the last chunk carries the `Result`. Closing the iterator cancels."""
        return self._iterate(self.encode(prompt), sampling or Sampling(), continues=True)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Result:
        """Answer a conversation ([{"role": ..., "content": ...}, ...]). tools and options: see `encode_chat`."""
        ids = self.encode_chat(messages, tools=tools, **options)
        with self._opened([self.add(ids, sampling or Sampling(), continues=False)]) as streams:
            return self._run(streams, None)[0]

    def chat_stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        """`chat`, chunk by chunk."""
        ids = self.encode_chat(messages, tools=tools, **options)
        return self._iterate(ids, sampling or Sampling(), continues=False)

    def _iterate(self, ids: list[int], sampling: Sampling, *, continues: bool) -> Iterator[Chunk]:
        with self._opened([self.add(ids, sampling, continues=continues)]) as (stream,):
            is_over = False
            while not is_over:
                if not stream.arrived:
                    self._step(STREAM_PATIENCE)
                    continue
                event = stream.arrived.popleft()
                is_over = event.finish_reason is not None
                if event.token_ids or event.error is None:
                    yield self.read(stream, event)
                if event.error is not None:
                    raise event.error

    def add(self, ids: Sequence[int], sampling: Sampling, *, continues: bool) -> Stream:
        """Queue a request without running it (for loops of your own, over `engine.step`).

        continues: the text goes on from the prompt, so its first space belongs to it.
        """
        text = Text(self.tokenizer, sampling.stops, continues=continues)
        return Stream(self.engine.add(ids, sampling.resolve(self.hints), text))

    def _run(self, streams: Sequence[Stream], progress: Callable[[int, int], None] | None) -> list[Result]:
        results: dict[int, Result] = {}
        while len(results) < len(streams):
            self._step(BATCH_PATIENCE)
            for stream in streams:
                while stream.arrived:
                    event = stream.arrived.popleft()
                    if event.error is not None:
                        raise event.error
                    chunk = self.read(stream, event)
                    if chunk.result is not None:
                        results[event.rid] = chunk.result
            if progress is not None:
                progress(len(results), len(streams))
        return [results[stream.request.rid] for stream in streams]

    def _step(self, patience: float) -> None:
        """One step of the engine. Its events go to the streams that they belong to: several may be read in turn."""
        for event in self.engine.step(patience):
            if (stream := self._streams.get(event.rid)) is not None:
                stream.arrived.append(event)

    @contextmanager
    def _opened(self, streams: list[Stream]) -> Iterator[list[Stream]]:
        """`streams`, and what is opened inside: they get their events, and are cancelled at the end."""
        for stream in streams:
            self._streams[stream.request.rid] = stream
        try:
            yield streams
        finally:
            for stream in streams:
                del self._streams[stream.request.rid]
                self.engine.cancel(stream.request.rid)

    def _open(self, streams: list[Stream], stream: Stream) -> None:
        streams.append(stream)
        self._streams[stream.request.rid] = stream

    def read(self, stream: Stream, event: Event) -> Chunk:
        """An event of `engine.step` as the next chunk of its stream. If it failed, no result: raise `event.error`."""
        stream.pieces.append(event.text)
        stream.logprobs += event.logprobs
        is_whole = event.finish_reason is not None and event.error is None
        result = self._result(stream, event) if is_whole else None
        return Chunk(event.text, event.token_ids, event.accepted, event.rejected_ids, result)

    def _result(self, stream: Stream, event: Event) -> Result:
        assert event.finish_reason is not None
        request, line = stream.request, stream.request.timeline
        started = line.arrived if line.started is None else line.started
        first = line.first_token if line.first_token is not None else line.finished or started
        decode_s = (line.finished or first) - first
        prefill_s = first - started
        return Result(
            text="".join(stream.pieces),
            token_ids=tuple(request.output),
            prompt_token_ids=request.prompt,
            finish_reason=event.finish_reason,
            usage=Usage(len(request.prompt), len(request.output)),
            timings=Timings(
                load_s=self.load_s,
                queue_s=started - line.arrived,
                prefill_s=prefill_s,
                decode_s=decode_s,
                prompt_per_second=len(request.prompt) / prefill_s if prefill_s > 0 else 0.0,
                predicted_per_second=(len(request.output) - 1) / decode_s if decode_s > 0 else 0.0,
                steps=line.steps,
                draft_n=line.drafted,
                draft_n_accepted=line.accepted,
            ),
            seed=request.noise.seed,
            logprobs=tuple(stream.logprobs),
            approximate=self._approximate,
        )


def open_tokenizer(file: ModelFile) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    return Tokenizer.from_gguf(file.metadata) if file.is_gguf else Tokenizer.from_dir(file.path)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
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
