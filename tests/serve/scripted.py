"""A model that says what a test wants it to say, token by token, without torch: for what is about the server alone.

Its tokens are bytes; 256 begins a text and 257 ends it. The engine is a stand-in, its requests are real ones. With a
grammar, it says those of its words that the grammar allows, and where none is allowed, a token that is.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from stretto.cache.ledger import Ledger, Room
from stretto.core.errors import RunError
from stretto.core.grammar import TokenMatcher
from stretto.core.pages import PageGroup
from stretto.core.pooling import Kind, Pooling
from stretto.core.sampling import Sampling
from stretto.core.settings import Settings
from stretto.engine.loras import Loras
from stretto.engine.output import embed
from stretto.engine.request import Event, Request, TextStream, TokenLogprobs, make_request
from stretto.llm.adapters import Adapters
from stretto.llm.embeddings import Embedder
from stretto.llm.streams import Streams
from stretto.llm.sync import LLM
from stretto.text.chat import ChatTemplate
from stretto.text.grammar import Grammars
from stretto.text.tokenizer import Tokenizer

BOS, EOS, VOCAB, D_MODEL = 256, 257, 258, 4
QUOTE = sorted(pre_tokenizers.ByteLevel.alphabet()).index('"')
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
Say = Callable[[Request], "Sequence[int]"]
"""The whole answer to a request."""


def byte_tokenizer(path: Path, template: str | None = TEMPLATE) -> Tokenizer:
    """Written to a folder and read from there, as any other."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.save(str(path / "tokenizer.json"))
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    if template is not None:
        names["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    return Tokenizer.from_dir(path)


class Gate:
    """Lets steps through: all of them, or as many as it is told to."""

    def __init__(self) -> None:
        self._is_open, self._permits, self._changed = True, 0, threading.Condition()

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_open, self._permits = False, 0

    def let(self, steps: int) -> None:
        """Exactly so many more; returns when they have begun."""
        with self._changed:
            self._permits += steps
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._is_open or not self._permits, 20)

    def wait(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_open or self._permits, 30)
            self._permits = max(0, self._permits - 1)
            self._changed.notify_all()


class ScriptedEngine:
    """Gives every running request its next token in each step. gate: steps wait there; num_steps: those in which
    somebody ran."""

    def __init__(self, say: Say, *, context: int, max_seqs: int) -> None:
        self.say, self.clock = say, time.perf_counter
        self.eos_ids, self.loras = frozenset({EOS}), Loras(None)
        self.gate = Gate()
        self.problem: Exception | None = None
        self.failing: Callable[[Request], bool] = lambda request: False
        self.num_steps, self.num_cancelled = 0, 0
        self.requests: dict[int, Request] = {}
        self.heard: dict[int, int] = {}  # words of the scripts that were said or left out
        self.added: list[Request] = []
        self.scheduler = SimpleNamespace(running=[], waiting=[], listeners=[])
        room = SimpleNamespace(num_blocks=(9,), num_slots=1, has_slots=False)
        pools = SimpleNamespace(room=room, num_pages=8)
        ledger = Ledger(Room(groups=(PageGroup(),), num_blocks=(9,), num_slots=1, has_slots=False))
        cache = SimpleNamespace(pools=pools, ledger=ledger, free_blocks=8, free_slots=0)
        sizes = SimpleNamespace(context=context, max_seqs=max_seqs)
        self.runner = SimpleNamespace(cache=cache, sizes=sizes, vocab_size=VOCAB)

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        text: TextStream | None = None,
        *,
        matcher: TokenMatcher | None = None,
        child: int = 0,
        priority: int = 0,
        tenant: str = "",
        space: str = "",
        tags: Mapping[str, int] | None = None,
        drafts: bool = True,
        lora: str | None = None,
        pooling: Kind | None = None,
    ) -> Request:
        request = make_request(
            len(self.added), prompt, sampling, text, child=child, matcher=matcher, eos_ids=self.eos_ids,
            vocab_size=VOCAB, context=self.runner.sizes.context, arrived=self.clock(), priority=priority,
            tenant=tenant, drafts=drafts, pooling=pooling,
        )  # fmt: skip
        self.added.append(request)
        self.requests[request.rid] = request
        return request

    def cancel(self, rid: int) -> Event | None:
        self.num_cancelled += rid in self.requests
        self.requests.pop(rid, None)
        return None

    @property
    def is_idle(self) -> bool:
        return not self.requests

    def step(self, patience: float = 0.0) -> list[Event]:
        if not self.requests:
            return []
        self.gate.wait()
        running = list(self.requests.values())[: self.runner.sizes.max_seqs]
        self.num_steps += 1
        if self.problem is not None:
            problem, self.problem = self.problem, None
            self.requests.clear()
            return [Event(r.rid, (), "", "error", error=problem) for r in running]
        return [self._advance(request) for request in running]

    def _advance(self, request: Request) -> Event:
        line = request.timeline
        line.start(self.clock())
        if self.failing(request):
            del self.requests[request.rid]
            return Event(request.rid, (), "", "error", error=RunError("a logit is NaN", why="0x7ffe internals"))
        if request.pool is not None:
            request.pool.read(0, [[1.0] * D_MODEL])
            line.finished = self.clock()
            del self.requests[request.rid]
            return embed(request)
        token = self._choose(request)
        line.first_token = line.first_token or self.clock()
        line.steps += 1
        request.append(token)
        assert request.text is not None
        piece, reason = "", None
        if token in request.stop_ids:
            reason = "stop"
        elif request.matcher is not None and request.matcher.is_over:
            piece, reason = request.text.push(token)[0], "stop"
        else:
            piece, stopped = request.text.push(token)
            reason = "stop" if stopped else "length" if request.remaining <= 0 else None
        if reason is not None:
            line.finished = self.clock()
            piece += request.text.finish()
            del self.requests[request.rid]
        count = request.sampling.logprobs
        logprobs = () if count is None else (TokenLogprobs(-0.5, {t: -0.5 - t for t in range(count)}),)
        return Event(request.rid, (token,), piece, reason, logprobs)  # type: ignore[arg-type]

    def _choose(self, request: Request) -> int:
        """The next word of the script; with a grammar, the next one that it allows, else any token that is allowed."""
        script, matcher = self.say(request), request.matcher
        if matcher is None:
            at = len(request.output)
            return script[at] if at < len(script) else EOS
        mask, at = matcher.allowed(), self.heard.get(request.rid, 0)
        allowed = [token for token in range(VOCAB) if mask[token // 8] >> token % 8 & 1]
        assert allowed, "a grammar that is not over goes on"
        token = next((word for word in [*script[at:], EOS] if word in allowed), self.filler(allowed))
        self.heard[request.rid] = script.index(token, at) + 1 if token in script[at:] else at
        matcher.accept([token])
        return token

    @staticmethod
    def filler(allowed: Sequence[int]) -> int:
        """What is said where the script has nothing: a quote, which ends a string, before anything else."""
        return QUOTE if QUOTE in allowed else allowed[0]


class ScriptedLLM(LLM):
    """`LLM` over a `ScriptedEngine`."""

    def __init__(
        self, folder: Path, say: Say, *, context: int = 512, max_seqs: int = 64, template: str | None = TEMPLATE,
        settings: Settings | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.load_s, self.hints = settings or Settings(), 0.0, {}
        self.tokenizer = byte_tokenizer(folder, template)
        self.template, self._grammars = ChatTemplate.of(self.tokenizer), Grammars(self.tokenizer)
        self.backend_choice = SimpleNamespace(name="scripted")  # type: ignore[assignment]
        self.scripted = ScriptedEngine(say, context=context, max_seqs=max_seqs)
        self._streams = Streams(self.scripted, 0.0, ())  # type: ignore[arg-type]
        self.loras = Adapters(self.scripted, lambda: self.file)  # type: ignore[arg-type]
        self.embedder = Embedder(self.tokenizer, Pooling(), D_MODEL)

    def ids(self, text: str) -> list[int]:
        """What must be said for this text."""
        return self.tokenizer.encode(text, add_bos=False, parse_special=False)


def saying(folder: Path, text: str, **options: Any) -> ScriptedLLM:
    """A model that answers everything with the same text."""
    llm = ScriptedLLM(folder, lambda request: [], **options)
    ids = llm.ids(text)
    llm.scripted.say = lambda request: ids
    return llm
