"""Least work, less what is cached: conversations go back to the replica that has read them.

    cost(replica) = work(replica) + prompt - cached(replica)        the least one is asked
    over replicas with work <= slack + ratio * least work           no prefix is worth more imbalance than that

What is cached is what was sent there before: an estimate, as the replica may have forgotten it. Router of SGLang
(arXiv 2312.07104) and Preble (arXiv 2407.00023).
"""

import math
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.serve.router.index import TOKENS, PrefixIndex
from stretto.serve.router.policy import Ask, Load, RoutePolicy


class Prefix(RoutePolicy):
    """slack: tokens; ratio: of the least work; blocks: how many are remembered of each replica."""

    def __init__(self, slack: int = 4096, ratio: float = 1.5, blocks: int = 1 << 16) -> None:
        if not 1 <= ratio < math.inf:
            raise UserError(f"prefix: ratio is {ratio}", why="it is a finite number from 1 up")
        if blocks < 1:
            raise UserError(f"prefix: blocks is {blocks}", why="at least one must be remembered")
        self._slack, self._ratio, self._index = slack, ratio, PrefixIndex(blocks)

    def choose(self, ask: Ask, loads: Sequence[Load]) -> int:
        most = self._slack + self._ratio * min(load.work for load in loads)
        fair = [load for load in loads if load.work <= most]
        return min(fair, key=lambda load: (load.work + self.unread(ask, load.number), load.turn)).number

    def unread(self, ask: Ask, number: int) -> int:
        return max(0, ask.prompt - TOKENS * self._index.known(ask.blocks, number))

    def sent(self, ask: Ask, number: int) -> None:
        self._index.add(ask.blocks, number)

    def lost(self, number: int) -> None:
        self._index.forget(number)


CARD = Card(
    name="prefix",
    make=Prefix,
    idea="the least work, less what the replica has read before, within a bound on imbalance",
    paper="2407.00023",
    can=Can(0),
    cost="O(replicas x blocks of the text) per request",
)
