"""The policy sockets: who runs, who leaves, how much is read, how much is drafted.

A policy is a plain object in the folder of the decision it makes (`engine/policies/order/`, `.../victim/`,
`.../chunk/`, `.../draft/`), with a card. It sees jobs: integers, no text.

Laws (tests/unit/test_policies.py): no torch, no clock and no global of its own (times arrive as arguments), the same
inputs give the same decision, a job is never changed, and the simulator runs the same object with its own clock.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Job:
    """A request as the scheduler sees it. Numbers count tokens. Policies change nothing.

    arrived: seconds on the engine's clock. priority: larger runs sooner, where a policy looks at it. tenant: whose it
    is. prompt, output: what there is; limit: most that may be output. held: in the cache. drafts: tokens may be drafted
    for it; ahead: its next tokens depend on nothing but the model and its noise; acceptance: of every token that a
    lookup has ready for it, how likely it is to be accepted; None = the drafter does not say before it is asked (the
    engine says these three for every step).
    """

    rid: int
    arrived: float
    prompt: int
    limit: int
    priority: int = 0
    tenant: str = ""
    output: int = 0
    held: int = 0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a step turned out to be. seconds: how long it took; num_seqs, num_rows: its size, drafts included;
    is_decode: whether every sequence decoded; drafted, emitted: tokens, over all sequences; num_steps: plain steps that
    ran as one. rounds: per job with a draft its number, the tokens of the draft, and which of them were accepted
    (1, 2, ...: their rows)."""

    seconds: float
    num_seqs: int
    num_rows: int
    is_decode: bool
    drafted: int
    emitted: int
    num_steps: int = 1
    rounds: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


class Policy:
    """What all policies share."""

    def learn(self, record: Record) -> None:
        """A step is over."""


class OrderPolicy(Policy, ABC):
    """In which order jobs are served: admissions, and prompts that are being read."""

    @abstractmethod
    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """All of them, next one first. Whoever waits long enough must come first, or it starves."""


class VictimPolicy(Policy, ABC):
    """Who is preempted when no page is left."""

    @abstractmethod
    def victim(self, running: Sequence[Job], now: float) -> Job:
        """One of them (there is at least one)."""


class ChunkPolicy(Policy, ABC):
    """How much of a prompt is read in a step."""

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
