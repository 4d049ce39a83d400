"""The probability that the model gave its tokens, as a geometric mean: exp of the mean log-probability.

Of the node's own tokens, at temperature 1, before filters. Nothing is computed for it: it comes with the tokens.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from stretto.core.card import Can, Card
from stretto.solve.sockets import Scorer
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group


class LogProb(Scorer):
    """0 for a node without tokens."""

    reads_logprobs: ClassVar[bool] = True

    async def score(self, group: "Group", nodes: Sequence[Node]) -> list[float]:
        return [likelihood(node) for node in nodes]


def likelihood(node: Node) -> float:
    """Geometric mean of the probabilities of its tokens."""
    found = [one.logprob for one in node.logprobs]
    return math.exp(math.fsum(found) / len(found)) if found else 0.0


CARD = Card(
    name="logprob",
    make=LogProb,
    idea="the mean log-probability that the model gave its own tokens",
    paper="2203.11171",
    can=Can(0),
)
