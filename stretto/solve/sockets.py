"""The sockets of this package: how a question is searched, and how good a text is.

Laws (tests/solve/): a budget is never exceeded, whatever a search does; the same seed gives the same answer, whatever
else the engine does; a search that is cancelled leaves nothing running.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from stretto.solve.outcome import Choice
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group


class Search(ABC):
    """A way to search. Its order of requests is a function of the texts alone, so that the seed decides all."""

    @abstractmethod
    async def run(self, group: "Group") -> Choice:
        """Grow the tree of `group` and choose. Once the budget is spent, nodes end as `cut`: choose among others then.

        Requests that run at the same time are made in one call (`grow`, `read`, `next_tokens`): their order decides who
        gets the rest of a budget."""


class Scorer(ABC):
    """How good a text is, from 0 to 1."""

    reads_logprobs: ClassVar[bool] = False
    """Whether it reads `Node.logprobs`: searches ask for them then."""

    @abstractmethod
    async def score(self, group: "Group", nodes: Sequence[Node]) -> list[float]:
        """Of every node, which has ended. What this costs is counted as everything else."""
