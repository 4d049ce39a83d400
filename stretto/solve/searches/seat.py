"""Rounds of parallel answers that end when they agree: semantic entropy as the signal.

A round is n answers; SE = - sum over answers of p log p (an answer that cannot be read agrees with none). The next
round sees what the last one said, and the question again. When does one stop?

- at SE = 0: all say the same, and more rounds would only repeat it (small models collapse so);
- threshold t: at the first round with SE <= t. What to choose: a low quantile of the entropies of first rounds over
  some questions of this kind (`quantile`);
- without one, by the rule of the secretary: ceil(R / e) of R rounds are only looked at, then the first one that is
  below all of them is taken.

The answer is that of the round where it stopped: what most of its texts say. Source: arXiv 2507.06829 (SEAT).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stretto.core.card import Can, Card, Exactness
from stretto.core.errors import UserError
from stretto.solve.outcome import Choice, choose
from stretto.solve.sockets import Search
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group

SUFFIX = (
    "These are answers of others, and some may be wrong. Answer the question again: think step by step, and end with"
    " your own final answer."
)


class SEAT(Search):
    """n: answers of a round. rounds: at most. threshold: of the entropy, in nats; -1 (the default) for the rule of the
    secretary. quote: tokens that the next round sees of each answer, its last ones."""

    def __init__(self, n: int = 4, rounds: int = 6, threshold: float = -1.0, quote: int = 128) -> None:
        for name, number, most in (("n", n, 256), ("rounds", rounds, 256), ("quote", quote, 1 << 16)):
            if not 1 <= number <= most:
                raise UserError(f"seat: {name} is {number}", why=f"it is a whole number from 1 to {most:,}")
        if not (threshold == -1 or 0 <= threshold < math.inf):
            raise UserError(f"seat: threshold is {threshold}", why="it is a finite number from 0 up")
        self._n, self._rounds, self._quote = n, rounds, quote
        self._threshold = None if threshold == -1 else threshold

    async def run(self, group: "Group") -> Choice:
        found: list[float] = []
        nodes, whole = list[Node](), list[Node]()
        for _ in range(self._rounds):
            root = await group.join(nodes, SUFFIX, quote=self._quote) if nodes else await group.ask()
            nodes = group.fork(root, self._n)
            await group.grow(nodes)
            if any(node.ending == "cut" for node in nodes):  # the budget ended in this round
                return choose(whole or nodes)
            whole = nodes
            found.append(entropy([node.answer for node in nodes]))
            if stops(found, self._rounds, self._threshold):
                return choose(nodes, decided=len(found) < self._rounds)
        return choose(nodes)


def entropy(answers: Sequence[str | None]) -> float:
    """Of the answers of a round, in nats."""
    counts = [*Counter(one for one in answers if one is not None).values()]
    counts += [1] * sum(one is None for one in answers)
    return math.fsum(count / len(answers) * math.log(len(answers) / count) for count in counts)


def stops(found: Sequence[float], rounds: int, threshold: float | None) -> bool:
    """Whether to stop after the last of these entropies, of at most `rounds` rounds."""
    if found[-1] == 0 or len(found) == rounds:
        return True
    if threshold is not None:
        return found[-1] <= threshold
    looked = math.ceil(rounds / math.e)
    return len(found) > looked and found[-1] < min(found[:looked])


def quantile(entropies: Sequence[float], share: float = 0.2) -> float:
    """A threshold from the entropies of first rounds: a `share` of them is not above it."""
    return sorted(entropies)[max(0, math.ceil(share * len(entropies)) - 1)]


CARD = Card(
    name="seat",
    make=SEAT,
    idea="rounds of parallel answers, each of which sees the last one, until they agree",
    paper="2507.06829",
    can=Can(0),
    tiny={"n": 3, "rounds": 3, "quote": 8},
    cost="n answers per round",
    exactness=Exactness.APPROXIMATE,
)
