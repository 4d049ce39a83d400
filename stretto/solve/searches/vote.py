"""Self-consistency: several answers to one question, and the one that most of them give.

It stops as soon as nothing that is still to come can change the winner: votes of the first, less votes of the second,
more than the answers that are missing. The winner is that of the whole vote. Sources: arXiv 2203.11171
(self-consistency), 2504.10449 (M1: votes within a given time).
"""

from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

from stretto.core.card import Can, Card, Exactness
from stretto.core.errors import UserError
from stretto.solve.outcome import Choice, choose
from stretto.solve.sockets import Search

if TYPE_CHECKING:
    from stretto.solve.group import Group


class Vote(Search):
    """n: answers. width: so many are written at a time (0 = all), so that those that turn out not to be needed are not
    begun. whole: all are written, whatever the first ones say."""

    def __init__(self, n: int = 8, width: int = 0, whole: bool = False) -> None:
        if not 1 <= n <= 1024:
            raise UserError(f"vote: n is {n}", why="there are from 1 to 1024 answers")
        self._n, self._width, self._whole = n, width, whole

    async def run(self, group: "Group") -> Choice:
        nodes = group.fork(await group.ask(), self._n)
        votes, missing = Counter[str](), len(nodes)
        async with aclosing(group.ended(nodes, width=self._width)) as ended:
            async for node in ended:
                missing -= 1
                votes.update([] if node.answer is None else [node.answer])
                if missing and not self._whole and is_decided(votes, missing):
                    return choose(nodes, decided=True)
        return choose(nodes)


def is_decided(votes: Counter[str], missing: int) -> bool:
    """Whether `missing` more votes cannot change who has most."""
    (_, first), (_, second) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    return first - second > missing


CARD = Card(
    name="vote",
    make=Vote,
    idea="the answer that most of several texts give, which stops when it can no longer change",
    paper="2203.11171, 2504.10449",
    can=Can(0),
    tiny={"n": 5},
    cost="n answers",
    exactness=Exactness.APPROXIMATE,
)
