"""An evolving population: groups of candidates are merged into new ones, by the strongest model only where it matters.

Round 0: the strongest model writes n candidates. Then, in every round:

1. a fitness for every candidate, and n groups of k candidates: drawn at random, or by softmax(fitness / heat) without
   replacement;
2. fitness of a group: the mean of its members', or minus the number of their different answers. The groups at or below
   the percentile go to the strongest model, the others to the cheapest; of these, the `lite` share with the highest
   fitness is not written at all, but takes the answer that most of its members give;
3. each group gives one candidate. They are the new population.

Fitness of a candidate: minus the mean over all returned log-probabilities of its tokens and their likeliest
alternatives, read by the cheapest model in one pass. Higher is more peaked, since the mean holds unlikely alternatives.

Source: arXiv 2604.07725. Differs from it: where groups are routed by how many answers differ, few different ones mean
an easy group, so that the strongest model gets those with many (the published code has it the other way round). With
one model, the cheap tier is the same model with `cheap` of the tokens.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from stretto.core.card import Can, Card, Exactness
from stretto.core.errors import UserError
from stretto.engine.request import TokenLogprobs
from stretto.solve.outcome import Choice, choose
from stretto.solve.sockets import Search
from stretto.solve.together import together
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group

SUFFIX = (
    "These are candidates for a solution, and some may be wrong. Write one better solution that takes what is right in"
    " them, and end with the final answer."
)
_TOP = 5  # likeliest alternatives of every token


class Squeeze(Search):
    """n: candidates. k: of a group. rounds: after the first one. percentile: of groups that the strongest model merges.
    lite: share of the other groups that are voted, not written. by: what routes groups, `confidence` or `agreement`.
    heat: 0 draws groups at random. cheap: share of the tokens of an answer for the cheap tier, where there is one model
    only. quote: tokens of a candidate that are shown, its last ones. accumulate: candidates stay beside new ones."""

    def __init__(
        self,
        n: int = 8,
        k: int = 4,
        rounds: int = 2,
        percentile: float = 50.0,
        lite: float = 0.0,
        by: str = "confidence",
        heat: float = 0.0,
        cheap: float = 0.5,
        quote: int = 128,
        accumulate: bool = False,
    ) -> None:
        for name, number, low, most in (("n", n, 2, 256), ("k", k, 2, n), ("rounds", rounds, 0, 64)):
            if not low <= number <= most:
                raise UserError(f"squeeze: {name} is {number}", why=f"it is a whole number from {low} to {most}")
        limits = (
            ("percentile", percentile, 0, 100),
            ("lite", lite, 0, 1),
            ("heat", heat, 0, 1e6),
            ("cheap", cheap, 0.01, 1),
        )
        for name, value, least, top in limits:
            if not least <= value <= top:
                raise UserError(f"squeeze: {name} is {value}", why=f"it is a number from {least:g} to {top:g}")
        if by not in ("confidence", "agreement"):
            raise UserError(f"squeeze: by is {by!r}", why="groups are routed by confidence or by agreement")
        self._n, self._k, self._rounds, self._percentile, self._lite = n, k, rounds, percentile, lite
        self._by, self._heat, self._cheap, self._quote, self._accumulate = by, heat, cheap, max(1, quote), accumulate

    async def run(self, group: "Group") -> Choice:
        people = group.fork(await group.ask(), self._n)
        await group.grow(people)
        for number in range(self._rounds):
            people = [node for node in people if node.ending != "cut"]
            if len(people) < self._k:
                break
            fitness = await self._fitness(group, people)
            if fitness is None:
                break
            new = await self._round(group, people, fitness, Random(f"{group.seed}/{number}"))
            if any(node.ending == "cut" for node in new):  # the last population that is whole is taken
                break
            people = [*people, *new] if self._accumulate else new
        return choose(people)

    async def _fitness(self, group: "Group", people: Sequence[Node]) -> list[float] | None:
        """None: the budget is spent."""
        if self._by == "agreement" and not self._heat:
            return [0.0] * len(people)
        judge = len(group.models) - 1
        read = await group.read(people, top=_TOP, model=judge)
        return [confidence(found) for found in read] if all(read) else None

    async def _round(
        self, group: "Group", people: Sequence[Node], fitness: Sequence[float], draw: Random
    ) -> list[Node]:
        groups = [draw_group(fitness, self._k, self._heat, draw) for _ in range(self._n)]
        if self._by == "confidence":
            worth = [math.fsum(fitness[i] for i in members) / len(members) for members in groups]
        else:
            worth = [-float(len({people[i].answer for i in members})) for members in groups]
        hard, easy, lite = route(worth, self._percentile, self._lite)
        cheapest = len(group.models) - 1
        roots = {
            at: await group.join(
                [people[i] for i in groups[at]], SUFFIX, model=0 if at in hard else cheapest, quote=self._quote
            )
            for at in sorted((*hard, *easy))
        }
        children = {at: group.fork(root)[0] for at, root in roots.items()}
        few = max(1, int(group.max_tokens * (self._cheap if cheapest == 0 else 1)))
        await together(
            [group.grow([children[at] for at in hard]), group.grow([children[at] for at in easy], max_tokens=few)]
        )
        voted = [choose([people[i] for i in groups[at]]).node or people[groups[at][0]] for at in lite]
        return [*(children[at] for at in sorted(children)), *voted]


def confidence(found: Sequence[TokenLogprobs]) -> float:
    """Minus the mean of all returned log-probabilities: those of the tokens and those of the likeliest ones."""
    values = [value for one in found for value in (one.logprob, *one.top.values())]
    return -math.fsum(values) / len(values)


def draw_group(fitness: Sequence[float], k: int, heat: float, draw: Random) -> list[int]:
    """k different candidates: all equally likely, or one after the other by softmax(fitness / heat)."""
    if not heat:
        return draw.sample(range(len(fitness)), k)
    left, found = list(range(len(fitness))), list[int]()
    for _ in range(k):
        most = max(fitness[i] for i in left)
        found.append(draw.choices(left, [math.exp((fitness[i] - most) / heat) for i in left])[0])
        left.remove(found[-1])
    return found


def route(worth: Sequence[float], percentile: float, lite: float) -> tuple[list[int], list[int], list[int]]:
    """Groups by tier: the lowest `percentile` of them to the strongest model, the others to the cheapest, except for
    the `lite` share of these that are worth most."""
    order = sorted(range(len(worth)), key=lambda i: (worth[i], i))
    hard = round(len(order) * percentile / 100)
    voted = int(lite * (len(order) - hard))
    end = len(order) - voted
    return order[:hard], order[hard:end], order[end:]


CARD = Card(
    name="squeeze",
    make=Squeeze,
    idea="a population of candidates, merged in groups, by the strongest model where they are least sure",
    paper="2604.07725",
    can=Can(0),
    tiny={"n": 4, "k": 2, "rounds": 1, "quote": 8},
    cost="n answers per round, a part of them by the cheapest model; one pass over each candidate",
    exactness=Exactness.APPROXIMATE,
)
