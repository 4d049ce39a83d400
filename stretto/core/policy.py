"""The `Policy` socket: who runs, who leaves, how much. Policies are small and see integers only.

A policy is a plain object with one method, in the folder of the noun it steers (`engine/policies/`, `cache/evict/`),
with a card. Laws: no torch, no clock and no global of its own (measured times arrive as arguments), the same inputs
give the same decision, and the simulator can run it with a simulated clock.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One request as the scheduler sees it. need: rows until its next token; arrival: admission order."""

    rid: int
    arrival: int
    need: int
    num_computed: int
    running: bool


class OrderPolicy(ABC):
    """In which order requests are served, and who gives way when memory runs out."""

    @abstractmethod
    def order(self, waiting: Sequence[Candidate]) -> list[Candidate]:
        """Waiting requests, next one first."""

    @abstractmethod
    def victim(self, running: Sequence[Candidate]) -> Candidate:
        """Who is preempted when no page is left (`running` is not empty)."""


class DraftPolicy(ABC):
    """How many draft nodes are worth verifying. `Never slower than plain decoding` is decided here."""

    @abstractmethod
    def num_nodes(self, num_running: int) -> int:
        """Nodes to ask for, per request, in a step with `num_running` decoding requests; 0 = plain step."""

    def plain_steps(self, num_running: int) -> int:
        """How many plain steps may follow one another from here before `num_nodes` has to be asked again."""
        return 1

    @abstractmethod
    def learn(self, *, drafted: int, emitted: int, num_running: int, seconds: float) -> None:
        """One step took `seconds`, verified `drafted` nodes and emitted `emitted` tokens."""
