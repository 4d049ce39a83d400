"""The socket `RoutePolicy`: which replica of a server answers a request.

A policy sees estimates in tokens and hashes of text, no replica and no clock. Roles (some replicas read prompts, others
write answers) are a matter of which loads it is offered: it would be asked twice for a request, over those of the first
role with an `Ask` of the prompt alone, then over those of the second with one of the output alone, and the router
would carry the handle of the prefix from one to the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request takes. blocks: hashes of its text, each of which stands for all text up to the end of its block;
    prompt, output: tokens to be read and to be written, estimated."""

    blocks: tuple[int, ...] = ()
    prompt: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """A replica that takes work. work: tokens that it was sent and has not answered yet; turn: number of the latest
    request that it was sent, 0 = none."""

    number: int
    work: int = 0
    turn: int = 0


class RoutePolicy(ABC):
    """Laws (tests/serve/test_routes.py): the choice is one of those that are offered, the same inputs give the same
    choice, and what one replica was sent does not grow without bound while another one has nothing to do."""

    @abstractmethod
    def choose(self, ask: Ask, loads: Sequence[Load]) -> int:
        """The number of one of `loads`, which is not empty."""

    def unread(self, ask: Ask, number: int) -> int:
        """Tokens of the prompt that this replica would have to compute, as far as is known."""
        return ask.prompt

    def sent(self, ask: Ask, number: int) -> None:  # noqa: B027 - most policies remember nothing
        """The request was sent to this replica."""

    def lost(self, number: int) -> None:  # noqa: B027
        """This replica ended, and all that it held with it."""
