"""A request from admission to its last event."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict

from stretto.core.errors import UserError
from stretto.core.grammar import TokenMatcher
from stretto.core.policy import Job
from stretto.core.pooling import Kind
from stretto.core.sampling import Noise, Sampling
from stretto.core.seqs import LORA
from stretto.engine.loras import Lora
from stretto.engine.pooling import Pool

FinishReason = Literal["stop", "length", "embedded", "cancelled", "error"]
"""Why a request is over; embedded: its prompt was read, which is all that was asked for."""


class TextStream(Protocol):
    """Turns tokens into text; holds back what may still change (half a character, half a stop string). hit: the stop
    string that was completed."""

    hit: str | None

    def push(self, token: int) -> tuple[str, bool]:
        """Text that is now certain, and whether a stop string was completed (the text ends before it)."""

    def finish(self) -> str:
        """The rest."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of an emitted token and of the likeliest alternatives, before temperature and filters."""

    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Event:
    """What one step did for one request. finish_reason is set exactly once, on the last event.

    accepted: how many of the tokens were drafted; drafted: how many nodes this step verified. error: with the finish
    reason "error", what to raise: UserError where the request itself could not go on, else whatever broke the step.
    """

    rid: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    drafted: int = 0
    accepted: int = 0
    rejected_ids: tuple[int, ...] = ()
    error: Exception | None = None


@dataclass(slots=True)
class Timeline:
    """Clock readings in seconds, and what was done in between."""

    arrived: float
    started: float | None = None  # first scheduled
    first_token: float | None = None
    finished: float | None = None
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def start(self, now: float) -> None:
        """It is scheduled; the first time counts."""
        self.started = now if self.started is None else self.started


@dataclass(slots=True, eq=False)
class Request:
    """One text being continued, or embedded. Only the engine changes it."""

    job: Job  # what the scheduler knows of it
    prompt: tuple[int, ...]
    sampling: Sampling  # resolved
    noise: Noise
    stop_ids: frozenset[int]  # these tokens end the text
    timeline: Timeline
    text: TextStream | None = None
    matcher: TokenMatcher | None = None  # of `sampling.grammar`, behind the last output token
    output: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of every token of the prompt but the first
    tags: Mapping[str, int] = field(default_factory=dict)
    lora: Lora | None = None  # its adapter
    may_draft: bool = True
    pool: Pool | None = None  # its hidden states become a vector: no token is chosen
    embedding: tuple[float, ...] | None = None  # the vector, once the prompt was read
    is_alone: bool = False  # its next token is computed without a draft beside it
    _tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = list(self.prompt)

    @property
    def rid(self) -> int:
        return self.job.rid

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and output. The last one is pending: nothing of it is in the cache yet while the request decodes."""
        return self._tokens

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.job.limit - len(self.output)

    def prepare(self, *, drafts: bool) -> None:
        """A step is to be planned: what the scheduler may do with it. drafts: whether drafts can be verified at all."""
        self.job.drafts = drafts and self.may_draft and not self.is_alone
        self.job.ahead = self.needs_nobody

    def append(self, token: int) -> None:
        """One more output token."""
        self.is_alone = False
        self.output.append(token)
        self._tokens.append(token)

    def banned(self, num_output: int) -> tuple[int, ...]:
        """Tokens that may not be chosen as output number `num_output` (end of text before `min_tokens`)."""
        return tuple(sorted(self.stop_ids)) if num_output < self.sampling.min_tokens else ()

    @property
    def needs_nobody(self) -> bool:
        """Whether its next tokens depend on nothing but the model and its noise."""
        s = self.sampling
        is_free = s.logprobs is None and self.matcher is None and self.pool is None
        return is_free and not (s.logit_bias or s.has_penalties or self.banned(len(self.output)))


def check_prompt(prompt: Sequence[int], vocab_size: int, context: int, *, room: int) -> None:
    """Refuse what cannot be run, before anything is allocated. room: tokens that must be left for the answer."""
    if not prompt:
        raise UserError("the prompt is empty", why="a model reads at least one token", try_="a non-empty prompt")
    bad = next((t for t in prompt if isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < vocab_size), None)
    if bad is not None:
        raise UserError(f"token id {bad!r} does not exist", why=f"the vocabulary has {vocab_size} tokens")
    if len(prompt) + room > context:
        raise UserError(
            f"the prompt has {len(prompt):,} tokens; the context is {context:,}",
            why="at least one token must be left for the answer" if room else None,
            try_="a shorter prompt, or a larger --ctx if the model was made for it",
        )


class How(TypedDict, total=False):
    """What else can be said of a request. child: number of this answer among those of one prompt and seed. priority,
    tenant, space: see `stretto.core.policy.Job`. tags: integers that parts of the model may ask for, such as the
    tenant of this request (`stretto.core.seqs`). drafts: tokens may be drafted for it. matcher: of the grammar of its
    sampling, of this request alone. pooling: it is embedded so, and nothing is sampled."""

    matcher: TokenMatcher | None
    child: int
    priority: int
    tenant: str
    space: str
    tags: Mapping[str, int] | None
    drafts: bool
    pooling: Kind | None


def make_request(
    rid: int,
    prompt: Sequence[int],
    sampling: Sampling,
    text: TextStream | None,
    *,
    matcher: TokenMatcher | None = None,
    child: int = 0,
    priority: int = 0,
    tenant: str = "",
    space: str = "",
    tags: Mapping[str, int] | None = None,
    lora: Lora | None = None,
    drafts: bool = True,
    pooling: Kind | None = None,
    eos_ids: frozenset[int],
    vocab_size: int,
    context: int,
    arrived: float,
) -> Request:
    """A request that can be run: everything about it is checked here. Raises UserError."""
    check_prompt(prompt, vocab_size, context, room=1 if pooling is None else 0)
    if sampling.stops and text is None:
        raise UserError("stop strings need a tokenizer", why="this engine was given none", try_="stop_token_ids")
    if (sampling.grammar is None) != (matcher is None):
        raise UserError("a grammar needs a tokenizer", why="its matcher follows the tokens", try_="LLM.add")
    for token in (*sampling.logit_bias, *sampling.stop_token_ids):
        if token >= vocab_size:
            raise UserError(f"token id {token} does not exist", why=f"the vocabulary has {vocab_size} tokens")
    pool = None if pooling is None else Pool(pooling, len(prompt))
    room = context - len(prompt) if pool is None else 0
    limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    seed = random.SystemRandom().getrandbits(63) if sampling.seed is None else sampling.seed
    if lora is not None:
        tags = {**(tags or {}), LORA: lora.number}
        space = f"{space} {LORA} {lora.version}"  # another adapter may have had this number
    space = space if not tags else f"{space} {sorted(tags.items())}"  # tags change what is cached
    request = Request(
        job=Job(rid, arrived, len(prompt), limit, priority, tenant, space=space),
        prompt=tuple(prompt),
        sampling=sampling,
        noise=Noise(seed, child),
        stop_ids=frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_ids),
        timeline=Timeline(arrived=arrived),
        text=text,
        matcher=matcher,
        tags=tags or {},
        lora=lora,
        may_draft=drafts and pool is None,
        pool=pool,
    )
    request.job.tokens = request.tokens
    request.job.fresh = sampling.prompt_logprobs is not None if pool is None else pool.is_of_all
    return request
