"""The policy sockets: who runs, who leaves, how much is read, how much is drafted, what is forgotten.

A policy is a plain object in the folder of the decision it makes (`engine/policies/order/`, `.../victim/`,
`.../chunk/`, `.../draft/`, `cache/evict/`), with a card. It sees integers, no text.

Laws (tests/unit/test_policies.py): no torch, no clock and no global of its own (times arrive as arguments), the same
inputs give the same decision, a job is never changed, and the simulator runs the same object with its own clock.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from stretto.core.pages import num_pages


@dataclass(slots=True, eq=False)
class Job:
    """A request as the scheduler sees it. Numbers count tokens. Policies change nothing.

    arrived: seconds on the engine's clock. priority: larger runs sooner, where a policy looks at it. tenant: whose
    it is. prompt, output: what there is; limit: most that may be output; expected: how much is expected to be.
    held: in the cache. tokens: prompt and output, a list that grows, for the prefix cache; None = its text is not
    shared. space: texts of different spaces share nothing. cached: what the prefix cache had of its prompt when it
    was admitted first. fresh: all of its prompt is computed, whatever is cached. drafts: tokens may be drafted for
    it; ahead: its next tokens depend on nothing but the model and its noise; acceptance: of every token that a
    lookup has ready for it, how likely it is to be accepted; None = the drafter does not say before it is asked
    (the engine says these three for every step).
    """

    rid: int
    arrived: float
    prompt: int
    limit: int
    priority: int = 0
    tenant: str = ""
    output: int = 0
    expected: int | None = None
    held: int = 0
    tokens: Sequence[int] | None = None
    space: str = ""
    cached: int | None = None
    fresh: bool = False
    is_running: bool = False
    drafts: bool = False
    ahead: bool = False
    acceptance: tuple[float, ...] | None = None
    num_preemptions: int = 0

    @property
    def need(self) -> int:
        """Rows until its next token is known: 1 while it decodes."""
        return self.prompt + self.output - self.held

    @property
    def remaining(self) -> int:
        """Tokens that may still be output."""
        return self.limit - self.output

    @property
    def likely(self) -> int:
        """Tokens that are likely still to be output: once a text is longer than expected, twice that is expected, and
        so on."""
        likely = max(1, self.limit if self.expected is None else self.expected)
        while likely <= self.output:
            likely *= 2
        return min(likely, self.limit) - self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a step turned out to be. seconds: how long it took; num_seqs, num_rows: its size, drafts included;
    is_decode: whether every sequence decoded; drafted, emitted: tokens, over all sequences; num_steps: plain steps that
    ran as one. rounds: per job with a draft its number, the tokens of the draft, and which of them were accepted
    (1, 2, ...: their rows). contexts: tokens in the cache of those that decode; pairs: tokens of prompts times the
    tokens that each of them sees. served: per tenant the prompt tokens that were read and the tokens that were emitted.
    """

    seconds: float
    num_seqs: int
    num_rows: int
    is_decode: bool
    drafted: int
    emitted: int
    num_steps: int = 1
    rounds: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    contexts: int = 0
    pairs: float = 0.0
    served: tuple[tuple[str, int, int], ...] = ()


class Policy:
    """What all policies share."""

    def learn(self, record: Record) -> None:
        """A step is over."""


class OrderPolicy(Policy, ABC):
    """In which order jobs are served: admissions, and prompts that are being read."""

    @abstractmethod
    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """All of them, next one first. Whoever waits long enough must come first, or it starves."""


class LengthPolicy(Policy, ABC):
    """How much of a text is output, before it is known."""

    @abstractmethod
    def expect(self, job: Job) -> int:
        """Tokens that a new job is expected to output, at least 1."""

    def ended(self, job: Job) -> None:
        """A job ended by itself, with `job.output` tokens."""


class VictimPolicy(Policy, ABC):
    """Who is preempted when no page is left."""

    @abstractmethod
    def victim(self, running: Sequence[Job], now: float) -> Job:
        """One of them (there is at least one)."""


class ChunkPolicy(Policy, ABC):
    """How much of a prompt is read in a step."""

    def begin(self, running: Sequence[Job]) -> None:
        """A step is about to be filled; these jobs run. `rows` is asked for each of them, and for those admitted."""

    @abstractmethod
    def rows(self, job: Job, budget: int) -> int:
        """At most min(`job.need`, budget) rows; 0 = not in this step. A whole budget of an otherwise empty step must
        give at least one, or nothing would ever move."""


class DraftPolicy(Policy, ABC):
    """How many tokens are worth verifying. `Never slower than plain decoding` is decided here."""

    wants_costs: bool = False
    """Whether it wants to `know` what steps cost before the first one."""

    @abstractmethod
    def budgets(self, jobs: Sequence[Job], most: int) -> list[int]:
        """Tokens to draft for each of these decoding jobs, at most `most` each; 0 = none. Asked once per step."""

    def know(self, seconds: Mapping[int, float]) -> None:
        """Seconds of a step by its rows, measured on this machine with this model, before the first step."""

    def plain_steps(self, num_seqs: int) -> int:
        """How many plain steps may follow one another from here before `budgets` has to be asked again."""
        return 1


class Prefix(Protocol):
    """A stretch of tokens in the prefix cache, as an eviction policy sees it. Nobody stands on it.

    start, end: its tokens' positions. used: when a request last used it, in requests since the start. has_state:
    whether the state behind its last token is there. num_children: stretches that continue it.
    """

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def has_state(self) -> bool: ...
    @property
    def num_children(self) -> int: ...


AnyPrefix = TypeVar("AnyPrefix", bound=Prefix)


class EvictPolicy(Policy, ABC):
    """What leaves the prefix cache when pages, or slots, are needed."""

    def know(self, worth: "Worth") -> None:
        """What the model's tokens cost, before the first call."""

    @abstractmethod
    def order(self, prefixes: Sequence[AnyPrefix], now: int) -> list[AnyPrefix]:
        """All of them, the first to go first. now: requests since the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What a cached stretch saves and takes. Operations: `per_token` for a token, `per_pair` for every token before it
    that it sees. Bytes: `page_bytes` for a page of tokens, `slot_bytes` for a state."""

    per_token: float = 1.0
    per_pair: float = 0.0
    page_bytes: int = 1
    slot_bytes: int = 0

    def saved(self, start: int, end: int) -> float:
        """Operations that computing the tokens from `start` to `end` would take."""
        return self.per_token * (end - start) + self.per_pair * (end * (end + 1) - start * (start + 1)) / 2

    def taken(self, start: int, end: int, *, has_state: bool) -> int:
        """Bytes of that stretch."""
        return num_pages(end - start) * self.page_bytes + has_state * self.slot_bytes
