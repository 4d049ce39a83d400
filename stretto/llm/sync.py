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
from stretto.core.drafter import Drafter
from stretto.core.env import Env, read_env
from stretto.core.errors import UserError
from stretto.core.judge import Judge
from stretto.core.page_format import Plain, page_format
from stretto.core.policy import DraftPolicy
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine, EngineConfig
from stretto.engine.request import Event
from stretto.hub.models import resolve
from stretto.llm.backend import BACKENDS, Choice, choose
from stretto.llm.options import approximations, make_drafting, make_judge
from stretto.llm.results import Chunk, Result, Stream, Timings, Usage
from stretto.llm.sizes import choose_sizes
from stretto.text.chat import ChatTemplate, chat_ids
from stretto.text.stream import Text
from stretto.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
"""One turn of a conversation in OpenAI's shape: `role` and `content`."""
DTYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PREFILLS = ("exact", "int8")
NATIVE_ROWS, TORCH_ROWS = 128, 512
_log = logging.getLogger("stretto")
STREAM_PATIENCE, BATCH_PATIENCE = 0.03, 0.25  # seconds between two looks at a text: of a reader, of a loop


class LLM:
    """One model with one engine. Not thread-safe (see `AsyncLLM`); several can live in one process.

    model: an alias ("smollm2"), a .gguf file or a checkpoint directory. draft: "none", "auto", "ngram",
    "ngram:n=3,nodes=8", or a `Drafter` with a `DraftPolicy`. dtype: "bfloat16", or "float32" for the reference mode
    (weights, activations and cache in fp32, through torch). backend: "native" kernels compute with the file's own
    integers and fp32 activations, "torch" with weights in `dtype`; "auto" is native where it can be, and
    `backend_choice` says what was taken and why. prefill: "exact" computes prompts as it decodes, to the bit; "int8" is
    faster: prompts, and only prompts, are multiplied with 8-bit activations and attend in 16-bit integers (native
    only). kv: how keys and values are cached: a codec that can ("bf16", "f32", "int8"), or "auto", which is `dtype`.
    context: longest sequence, default what the model was made for, or as much of it as memory allows.
    memory_bytes: for the cache, which all sequences share; default 90% of what is free on the machine and in its
    control group, less weights and buffers. max_rows: most rows of a step, of prompts and drafts; default 128 on native
    kernels, whose caches hold the activations of so many, and 512 through torch. note: gets a line when the kernels are
    compiled, which happens once, and what is to be known of the model and its sizes (default for that: a warning by
    `logging`).
    Raises UserError and its subclasses (see stretto.core.errors).
    """

    def __init__(
        self,
        model: str | Path,
        *,
        draft: str | tuple[Drafter, DraftPolicy] = "auto",
        judge: str | Judge = "coupled",
        dtype: str = "bfloat16",
        backend: str = "auto",
        prefill: str = "exact",
        kv: str = "auto",
        context: int | None = None,
        max_seqs: int = 32,
        max_rows: int | None = None,
        memory_bytes: int | None = None,
        chat_template: str | None = None,
        progress: Progress | None = None,
        env: Env | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        env = env or read_env()
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}", try_=f"one of {', '.join(DTYPES)}")
        if backend not in BACKENDS:
            raise UserError(f"unknown backend {backend!r}", try_=f"one of {', '.join(BACKENDS)}")
        if prefill not in PREFILLS:
            raise UserError(f"unknown prefill {prefill!r}", try_=f"one of {', '.join(PREFILLS)}")
        drafting = make_drafting(draft) if isinstance(draft, str) else draft
        kv_format = Plain(DTYPES[dtype]) if kv == "auto" else page_format(kv)
        self._approximate = approximations(draft, judge, prefill, kv)
        file = open_model(resolve(str(model), env=env, progress=True))
        self.file: ModelFile = file
        self.tokenizer = open_tokenizer(file)
        source = chat_template if chat_template is not None else self.tokenizer.chat_template
        self.template = self._template(source)
        self.hints = generation_hints(file)
        self.dtype = dtype
        if dtype == "float32":
            if backend == "native":
                raise UserError("backend='native' with dtype='float32'", why="float32 is the reference, through torch")
            self.backend_choice = Choice(None, "float32 is the reference mode")
        else:
            self.backend_choice = choose(backend, matrix_codecs(file), env, note)
        threads = self.backend_choice.threads
        if threads is None and prefill != "exact":
            raise UserError(f"prefill={prefill!r} needs the native kernels", why=str(self.backend_choice.why))
        rows = max(max_rows or (TORCH_ROWS if threads is None else NATIVE_ROWS), max_seqs + 1)
        sizes = choose_sizes(
            file,
            DTYPES[dtype],
            kv=kv_format,
            native=threads is not None,
            max_rows=rows,
            context=context,
            memory_bytes=memory_bytes,
        )
        for text in (*file.notes, *ignored_hints(file), *filter(None, [sizes.note])):
            (note or _log.warning)(text)
        if threads is None:
            lm = load_model(file, DTYPES[dtype], progress).prepack()
        else:
            lm = load_model(file, torch.float32, progress, team=threads)
        self.engine = Engine(
            lm,
            EngineConfig(
                context=sizes.context,
                max_seqs=max_seqs,
                max_rows=rows,
                memory_bytes=sizes.memory_bytes,
                kv=kv_format.name,
                coarse_prompts=prefill == "int8",
            ),
            drafter=drafting[0] if drafting else None,
            draft_policy=drafting[1] if drafting else None,
            judge=make_judge(judge) if isinstance(judge, str) else judge,
            eos_ids=self.tokenizer.eos_ids,
            vocab_size=self.tokenizer.vocab_size,
            threads=threads,
        )
        for text in self.engine.notes:
            (note or _log.warning)(text)
        self._streams: dict[int, Stream] = {}  # those that are being read, by request
        self.load_s = time.perf_counter() - started

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
        if self.template is None:
            raise UserError(
                f"{self.file.path.name} has no chat template",
                why="guessing one would change what the model sees",
                try_="--raw for a plain continuation, or --chat-template FILE",
            )
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
        settings = as_samplings(sampling, len(many))
        with self._opened([]) as streams:
            for prompt, setting in zip(many, settings, strict=True):
                self._open(streams, self.add(self.encode(prompt), setting, continues=True))
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

    def _template(self, source: str | None) -> ChatTemplate | None:
        return None if source is None else ChatTemplate.of(self.tokenizer, source)


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
