"""Efficient tree search: texts grow step by step, and only a part of the tree is kept, such that its leaves are good,
share their beginnings, and differ in what they say.

After every step the scorer gives each leaf a score s_i from 0 to 1. Balanced by reward, leaf i would get
n_i = ceil(W softmax(s_i / 0.2)) of the W places, the best first, while there are places. O_i = n_i / sum(n) is its
reward, and `selection.select` chooses which leaves are kept. The places are shared among these by the same rule, and
each leaf is forked so many times. A text that has ended gives its place back. The answer is that of most weight, by the
scores of the texts that ended (of all, if none did).

Sources: arXiv 2502.13575 (ETS), 2408.00724 (REBASE: the balance). Differs from them: steps are alike by their words
(`clusters.py`), not by an embedding, so the cut is at another place; the number of steps is bounded.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stretto.core.card import Can, Card, Exactness
from stretto.core.errors import UserError, near
from stretto.solve.clusters import clusters, cosines
from stretto.solve.outcome import Choice, choose
from stretto.solve.selection import Leaf, select
from stretto.solve.sockets import Search
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group

_ENDS = {"line": ("\n",), "paragraph": ("\n\n",), "sentence": (". ", "? ", "! ", "\n")}
_HEAT = 0.2  # of the balance


class ETS(Search):
    """width: leaves that are written at a time. steps: of a text at most. by: what a step is, a line, a paragraph or a
    sentence. step_tokens: of a step at most. cost, cover: what a node that nobody shares costs, and what different
    steps are worth, beside reward. cut: distance from which on steps are different."""

    def __init__(
        self,
        width: int = 16,
        steps: int = 8,
        by: str = "paragraph",
        step_tokens: int = 64,
        cost: float = 1.0,
        cover: float = 1.5,
        cut: float = 0.3,
    ) -> None:
        for name, number, most in (("width", width, 64), ("steps", steps, 1024), ("step_tokens", step_tokens, 1 << 16)):
            if not 1 <= number <= most:
                raise UserError(f"ets: {name} is {number}", why=f"it is a whole number from 1 to {most:,}")
        for name, weight in (("cost", cost), ("cover", cover), ("cut", cut)):
            if not 0 <= weight < math.inf:
                raise UserError(f"ets: {name} is {weight}", why="it is a finite number from 0 up")
        if by not in _ENDS:
            raise UserError(f"ets: by is {by!r}", why="it says what a step is", try_=near(by, list(_ENDS)))
        self._width, self._steps, self._by, self._step_tokens = width, steps, by, step_tokens
        self._cost, self._cover, self._cut = cost, cover, cut

    async def run(self, group: "Group") -> Choice:
        root = await group.ask()
        done, leaves = list[Node](), list[Node]()
        open_, logprobs = group.fork(root, self._width), 0 if group.scorer.reads_logprobs else None
        for step in range(self._steps):
            await group.grow(open_, max_tokens=self._step_tokens, stop=_ENDS[self._by], logprobs=logprobs)
            written = [node for node in open_ if node.ending != "cut"]
            await group.score(written)
            done += [node for node in written if node.ending == "end"]
            leaves = [node for node in written if node.ending != "end" and node.token_ids]
            places = self._width - len(done)
            if step == self._steps - 1 or not leaves or places < 1:
                break
            kept = self._keep(leaves, places)
            shares = balance([node.score or 0.0 for node in kept], places)
            open_ = [child for node, n in zip(kept, shares, strict=True) for child in group.fork(node, n)]
        for node in leaves if not done else ():  # no text came to its end: what do they say so far?
            node.answer = group.extract(node.solution)
        return choose(done or leaves, weighted=True)

    def _keep(self, leaves: Sequence[Node], places: int) -> list[Node]:
        shares = balance([node.score or 0.0 for node in leaves], places)
        alike = clusters(cosines([node.token_ids for node in leaves]), self._cut)
        numbers: dict[tuple[int, ...], int] = {}
        found = []
        for node, share, cluster in zip(leaves, shares, alike, strict=True):
            above = [numbers.setdefault(one.path, len(numbers)) for one in reversed([*node.ancestors])]
            found.append(Leaf(share / sum(shares), tuple(above), cluster))
        return [leaves[i] for i in select(found, self._cost, self._cover)]


def balance(scores: Sequence[float], places: int) -> list[int]:
    """How many of `places` each leaf gets: ceil(places * softmax(score / 0.2)), the best first, while there are any."""
    most = max(scores)
    weights = [math.exp((score - most) / _HEAT) for score in scores]
    shares, left = [0] * len(scores), places
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        shares[i] = min(left, math.ceil(places * weights[i] / math.fsum(weights)))
        left -= shares[i]
    return shares


CARD = Card(
    name="ets",
    make=ETS,
    idea="a tree of steps, of which such leaves are kept as are good, share their beginnings and differ",
    paper="2502.13575",
    can=Can(0),
    tiny={"width": 4, "steps": 3, "step_tokens": 8},
    cost="width leaves at a time, at most steps of each",
    exactness=Exactness.APPROXIMATE,
)
