"""What the Python API returns."""

from collections import deque
from dataclasses import dataclass, field

from stretto.engine.request import Event, FinishReason, Request, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, in OpenAI's names. cached_tokens: of the prompt, those that the prefix cache had."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and rates of one request. prefill_s: from the first step to the first token; decode_s: from there on.
    prompt_per_second counts tokens that were computed, not those that the prefix cache had.

    draft_n: draft nodes that were verified; draft_n_accepted: how many of them became output; steps: forward passes
    that produced tokens, so tokens per step is completion_tokens / steps.
    """

    load_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    prompt_per_second: float
    predicted_per_second: float
    steps: int
    draft_n: int
    draft_n_accepted: int


@dataclass(frozen=True, slots=True)
class Result:
    """The continuation of one prompt. seed: what `Sampling.seed` must be to get the same text again.

    approximate: what may have changed the output, `prefill int8` for example; empty = exact or lossless.
    prompt_logprobs: of every token of the prompt but the first, if they were asked for. stop_string: the one that
    ended the text, if one did. embedding: of a prompt that was embedded instead of continued, of unit length.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    approximate: tuple[str, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    stop_string: str | None = None
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added to a stream. result: everything, on the last chunk only.

    accepted: how many of the new tokens had been drafted; rejected_ids: draft tokens that were wrong. logprobs: of the
    new tokens, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    accepted: int = 0
    rejected_ids: tuple[int, ...] = ()
    result: Result | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(slots=True, eq=False)
class Stream:
    """A request of this API and what it has produced so far. arrived: events that nobody has read yet."""

    request: Request
    arrived: deque[Event] = field(default_factory=deque)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
